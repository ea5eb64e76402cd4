"""CamVid: label 11 counts nowhere, and label maps with labels of no class are refused before the training."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

pytest.importorskip('mmseg')

from mmseg.evaluation import IoUMetric
from mmseg.models.losses import CrossEntropyLoss

from s6la_mm.datasets import CamVidDataset
from s6la_mm.engine.hooks.label_check import LabelCheckHook, check_labels

CONFIG = Path(__file__).parents[2] / 'configs/upernet/upernet_s6la-r18_camvid.py'
REAL = Path(os.environ.get('CAMVID_ROOT', Path(__file__).parents[3] / 'shared/data/camvid'))
PREFIX = dict(img_path='images/train', seg_map_path='annotations/train')
LOAD = [dict(type='mmseg.LoadAnnotations')]


def make_root(folder: Path, *label_maps: list) -> Path:
    """A data set of grey images with these label maps as its training set."""
    for name in ('images/train', 'annotations/train'):
        (folder / name).mkdir(parents=True)
    for index, labels in enumerate(label_maps):
        labels = np.array(labels, np.uint8)
        cv2.imwrite(str(folder / f'annotations/train/{index}.png'), labels)
        cv2.imwrite(str(folder / f'images/train/{index}.jpg'), np.full((*labels.shape, 3), 128, np.uint8))
    return folder


def dataset(root: Path, **options) -> CamVidDataset:
    options = dict(type='CamVidDataset', data_root=str(root), data_prefix=PREFIX, pipeline=LOAD) | options
    return DATASETS.build(options)


def test_label_11_becomes_ignore_index(tmp_path):
    data = dataset(make_root(tmp_path, [[0, 10, 11], [11, 5, 0]]))
    assert type(data) is CamVidDataset
    assert len(data.metainfo['classes']) == len(data.metainfo['palette']) == len(set(data.metainfo['palette'])) == 11
    assert data[0]['gt_seg_map'].tolist() == [[0, 10, 255], [255, 5, 0]]


def test_some_of_the_classes(tmp_path):
    data = dataset(make_root(tmp_path, [[8, 3], [11, 0]]), metainfo=dict(classes=('car', 'road')))
    assert data.metainfo['palette'] == [(64, 0, 128), (128, 64, 128)]
    assert data[0]['gt_seg_map'].tolist() == [[0, 1], [255, 255]]


def test_loss_and_metric_do_not_see_label_11(tmp_path):
    labels = torch.from_numpy(dataset(make_root(tmp_path, [[3, 11], [11, 11]]))[0]['gt_seg_map']).long()[None]
    scores = torch.full((1, 11, 2, 2), -5.0)
    scores[:, 7] = 5.0
    scores[:, 3, 0, 0], scores[:, 7, 0, 0] = 5.0, -5.0  # right where there is a label, surely wrong elsewhere
    assert CrossEntropyLoss()(scores, labels, ignore_index=255) < 1e-3
    metric = IoUMetric()
    metric.dataset_meta = CamVidDataset.METAINFO
    sample = dict(pred_sem_seg=dict(data=scores.argmax(1)), gt_sem_seg=dict(data=labels))
    metric.process({}, [sample])
    result = metric.evaluate(1)
    assert result['aAcc'] == 100.0 and result['mIoU'] == 100.0


def test_labels_of_no_class_are_counted_and_named(tmp_path):
    data = dataset(make_root(tmp_path, [[0, 10, 11]], [[12, 12, 30]], [[12, 0, 0]]))
    with pytest.raises(
        ValueError, match=r'label 12: 3 pixels in 2 files, the first .*1\.png; label 30: 1 pixels in 1 '
    ):
        check_labels(data, num_classes=11)
    wrapped = SimpleNamespace(dataset=SimpleNamespace(datasets=[data]))
    runner = SimpleNamespace(model=SimpleNamespace(num_classes=31), train_dataloader=SimpleNamespace(dataset=wrapped))
    LabelCheckHook().before_train(runner)  # 31 classes have them all
    runner.model.num_classes = 30
    with pytest.raises(ValueError, match=r'none of the 30 classes .*label 30'):
        LabelCheckHook().before_train(runner)


@pytest.mark.skipif(not REAL.is_dir(), reason=f'no CamVid in {REAL}: set CAMVID_ROOT')
@pytest.mark.parametrize(('split', 'count'), [('train', 367), ('val', 101), ('test', 233)])
def test_real_camvid(split, count, monkeypatch):
    monkeypatch.setenv('CAMVID_ROOT', str(REAL))
    cfg = Config.fromfile(CONFIG)[f'{split}_dataloader'].dataset
    with DefaultScope.overwrite_default_scope('mmseg'):
        data = DATASETS.build(cfg)
    assert len(data) == count
    sample = data[0]
    height, width = (192, 256) if split == 'train' else (360, 480)
    assert sample['inputs'].shape == (3, height, width)
    labels = set(sample['data_samples'].gt_sem_seg.data.unique().tolist())
    assert labels <= {*range(11), 255} and 255 in labels and len(labels) > 4
    with DefaultScope.overwrite_default_scope('mmseg'):
        few = DATASETS.build(dict(cfg, indices=20))
    check_labels(few, num_classes=11)
    with pytest.raises(ValueError, match='label 10'):
        check_labels(few, num_classes=10)
