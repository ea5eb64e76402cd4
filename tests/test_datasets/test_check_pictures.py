"""Pictures of samples, as they are and as the network gets them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image
from small_data import LOAD_MASKS, LOAD_SEG, SIZE, coco, draw, halves, scenes
from tool_runner import call

from s6la_mm.common.configs import enter_scope
from s6la_mm.datasets.checks.pictures import save_pictures


def test_pictures(tmp_path):
    """Before and after the pipeline, of a detector whose samples are mixed."""
    pack = dict(type='PackDetInputs', meta_keys=('img_path',))
    data = coco(tmp_path, pipeline=[*LOAD_MASKS, dict(type='Resize', scale=(80, 64))])
    mixed = dict(
        type='MultiImageMixDataset', dataset=dict(type='RepeatDataset', times=1, dataset=data), pipeline=[pack]
    )
    preprocessor = dict(type='DetDataPreprocessor', mean=[100.0] * 3, std=[50.0] * 3, bgr_to_rgb=True, pad_mask=True)
    Config(
        dict(
            default_scope='mmdet',
            model=dict(data_preprocessor=preprocessor),
            train_dataloader=dict(dataset=mixed),
        )
    ).dump(tmp_path / 'det.py')
    result = call('misc/check_dataset.py', tmp_path / 'det.py', '--show-dir', tmp_path / 'shown')
    assert result.returncode == 0, result.stdout + result.stderr
    shown = {path.name for path in (tmp_path / 'shown').iterdir()}
    assert shown == {f'train_{i}_{view}.jpg' for i in (0, 1) for view in ('raw', 'network')}
    raw, network = (Image.open(tmp_path / f'shown/train_0_{view}.jpg') for view in ('raw', 'network'))
    assert (raw.size, network.size) == (SIZE, (80, 64))
    # A corner without objects: the same colours, red where red was.
    picture = Image.open(tmp_path / 'train/0.jpg').convert('RGB').resize((80, 64))
    difference = np.abs(np.float32(network)[54:, 2:30].mean((0, 1)) - np.float32(picture)[54:, 2:30].mean((0, 1)))
    assert difference.max() < 8
    assert 'train: 4 pictures in' in result.stdout


def test_pictures_of_segmentation_and_classification(tmp_path):
    """Labels in the colours of the data set; a picture that cannot be drawn is said, and the others are there."""
    red, blue = [255, 0, 0], [0, 0, 255]
    pipeline = [*LOAD_SEG, dict(type='PackSegInputs')]
    data = scenes(tmp_path, [halves(0, 1)] * 2, pipeline=pipeline)
    data['metainfo']['palette'] = [red, blue]
    (tmp_path / 'images/1.jpg').write_bytes(b'')
    model = dict(data_preprocessor=dict(type='SegDataPreProcessor', size=SIZE[::-1], bgr_to_rgb=True))
    cfg = Config(dict(default_scope='mmseg', model=model, val_dataloader=dict(dataset=dict(data, test_mode=True))))
    enter_scope(cfg)
    files, failures = save_pictures(cfg, 'val', str(tmp_path / 'seg'))
    assert [Path(file).name for file in files] == ['val_0_raw.jpg', 'val_0_network.jpg']
    assert len(failures) == 2 and all('val_1' in failure for failure in failures)
    for file in files:
        left, right = (half.mean((0, 1)) for half in np.split(np.float32(Image.open(file)), 2, axis=1))
        assert left[0] > right[0] + 60 and right[2] > left[2] + 60

    draw(tmp_path / 'folder/cat/0.jpg')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    data = dict(type='CustomDataset', data_root=str(tmp_path / 'folder'), pipeline=pipeline)
    stats = dict(num_classes=1, mean=[99] * 3, std=[50] * 3, to_rgb=True)
    cfg = Config(dict(default_scope='mmpretrain', data_preprocessor=stats, train_dataloader=dict(dataset=data)))
    enter_scope(cfg)
    files, failures = save_pictures(cfg, 'train', str(tmp_path / 'cls'))
    assert len(files) == 2 and not failures
    raw, network = (np.float32(Image.open(file)) for file in files)
    assert np.abs(raw - network).mean() < 2
