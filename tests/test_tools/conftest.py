"""Small trainings that the tests of several tools start from, each made once in a session."""

import pytest
from once import once
from tiny_training import describe, train_tiny


@pytest.fixture(scope='session')
def mask_rcnn(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A Mask R-CNN after 4 iterations, with a checkpoint at 2 and 4: its config file, work dir, data set and images."""
    return describe(once(tmp_path_factory, 'mask_rcnn', lambda folder: train_tiny('mask-rcnn', folder)))


@pytest.fixture(scope='session')
def retinanet(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The same of a RetinaNet, which is faster."""
    return describe(once(tmp_path_factory, 'retinanet', lambda folder: train_tiny('retinanet', folder)))
