"""Training, test and demo of segmentation and classification."""

from __future__ import annotations

import json
import pickle

import cv2
import numpy as np
import pytest
from tool_runner import call, check

SEGMENTATION = """
_base_ = ['mmseg::_base_/default_runtime.py']
norm_cfg = dict(type='BN')
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),
    backbone=dict(type='ResNetV1c', depth=18, norm_cfg=norm_cfg),
    decode_head=dict(type='FCNHead', in_channels=512, in_index=3, channels=8, num_convs=1, num_classes=2,
                     norm_cfg=norm_cfg),
    test_cfg=dict(mode='whole'))
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
dataset = dict(
    type='BaseSegDataset', data_root='{data}', img_suffix='.png', pipeline=pipeline,
    data_prefix=dict(img_path='images', seg_map_path='labels'),
    metainfo=dict(classes=('a', 'b'), palette=[[0, 0, 0], [255, 0, 0]]))
evaluator = dict(type='IoUMetric')
default_hooks = dict(visualization=dict(type='SegVisualizationHook'))
"""
CLASSIFICATION = """
_base_ = ['mmpretrain::_base_/models/resnet18.py', 'mmpretrain::_base_/default_runtime.py']
model = dict(head=dict(num_classes=2, topk=(1,)))
data_preprocessor = dict(num_classes=2)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
dataset = dict(type='CustomDataset', data_root='{data}', pipeline=pipeline)
evaluator = dict(type='Accuracy', topk=1)
"""
SCHEDULE = """
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True), dataset=dataset)
val_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = evaluator
test_evaluator = evaluator
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = dict()
test_cfg = dict()
log_processor = dict(by_epoch=True)
"""


@pytest.mark.parametrize(
    ('package', 'config', 'result'), [('mmseg', SEGMENTATION, 'share'), ('mmpretrain', CLASSIFICATION, 'best')]
)
def test_other_scopes(package, config, result, tmp_path):
    """Train in bfloat16, test and predict; the same four folders serve as labels and as classes."""
    pytest.importorskip(package)
    for folder in ('images', 'labels'):
        (tmp_path / 'data' / folder).mkdir(parents=True)
        for index in range(4):
            value = np.full((64, 64, 3), index % 2, np.uint8)
            cv2.imwrite(
                str(tmp_path / 'data' / folder / f'{index}.png'), value if folder == 'images' else value[..., 0]
            )
    path = tmp_path / 'config.py'
    path.write_text(config.format(data=tmp_path / 'data') + SCHEDULE)
    check(call('train.py', path, '--work-dir', tmp_path / 'run', '--amp'))
    assert 'CPUAmpOptimWrapper' in (tmp_path / 'run/config.py').read_text()
    checkpoint = tmp_path / 'run/epoch_1.pth'
    check(
        call(
            *('test.py', path, checkpoint, '--work-dir', tmp_path / 't', '--out', tmp_path / 'out.pkl'),
            *('--show-dir', tmp_path / 'shown'),
        )
    )
    predictions = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert len(predictions) == (4 if package == 'mmseg' else 8)
    assert 'seg_logits' not in predictions[0]
    assert len(list((tmp_path / 'shown').rglob('*.png'))) == 4
    check(call('image_demo.py', tmp_path / 'data/images', path, checkpoint, '--out-dir', tmp_path / 'demo'))
    assert result in json.loads((tmp_path / 'demo/preds/0.json').read_text())
    assert len(list((tmp_path / 'demo/vis').iterdir())) == 4
