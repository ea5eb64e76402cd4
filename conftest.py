"""What holds for every test, whatever ran before it in the same process; and trainings of seconds, made once."""

from __future__ import annotations

import multiprocessing.context
import random
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from _pytest.doctest import DoctestItem, DoctestModule
from forked import CONTEXT, TESTS, start_server
from mmengine.logging import MMLogger
from once import once
from tiny_training import describe, train_tiny
from tool_runner import ROOT, forget_instances


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path) -> Generator[None, list, list]:
    """Keeps --doctest-modules from importing what is beside the tests."""
    collectors = yield
    if TESTS in file_path.parents:
        return [collector for collector in collectors if not isinstance(collector, DoctestModule)]
    return collectors


@pytest.fixture(autouse=True)
def fresh_start(request: pytest.FixtureRequest) -> None:
    """Forgets what another test's runner or model has left: names would be looked up in its default scope.

    Random numbers are the same in every order of the tests. The examples of docstrings find the configs as in a clone
    of the repository, and may write files.
    """
    forget_instances()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    if isinstance(request.node, DoctestItem):
        tmp_path = request.getfixturevalue('tmp_path')
        (tmp_path / 'configs').symlink_to(ROOT / 'configs')
        request.getfixturevalue('monkeypatch').chdir(tmp_path)
        MMLogger.get_instance('examples', log_level='ERROR')  # what is logged is no output


@pytest.fixture
def spawned_by_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks multiprocessing for the start method ``'spawn'`` gets processes that have imported the packages."""
    start_server()
    monkeypatch.setitem(multiprocessing.context._concrete_contexts, 'spawn', CONTEXT)


@pytest.fixture(scope='session')
def mask_rcnn(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A Mask R-CNN after 4 iterations, with a checkpoint at 2 and 4: its config file, work dir, data set and images."""
    return describe(once(tmp_path_factory, 'mask_rcnn', lambda folder: train_tiny('mask-rcnn', folder)))


@pytest.fixture(scope='session')
def retinanet(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The same of a RetinaNet, which is faster."""
    return describe(once(tmp_path_factory, 'retinanet', lambda folder: train_tiny('retinanet', folder)))
