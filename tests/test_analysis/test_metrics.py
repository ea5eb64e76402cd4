"""Which of what a training has logged are metrics, and which way is better."""

from __future__ import annotations

import json

import pytest
from mmengine.config import Config

from s6la_mm.analysis.logs import read_entries
from s6la_mm.analysis.metrics import is_lower_better, main_metrics, metrics_in

LVIS = [f'lvis/bbox_{key}' for key in ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'APr', 'APc', 'APf')]
PANOPTIC = [f'coco_panoptic/{key}{part}' for part in ('', '_th', '_st') for key in ('PQ', 'SQ', 'RQ')]


def test_what_is_no_metric():
    train = dict(lr=0.1, data_time=0.1, loss=1.0, loss_cls=1.0, acc=90.0, time=0.2, epoch=1, iter=5, memory=100, step=5)
    assert metrics_in(train) == {}
    assert metrics_in({'s6la/layer1/decay': 0.9, 'step': 5}) == {}
    assert metrics_in({'single-label/f1-score': 3.0, 'time': 0.1, 'data_time': 0.1, 'step': 5, 'table': 'text'}) == {
        'single-label/f1-score': 3.0
    }


def test_details_of_a_metric_are_no_curves():
    assert main_metrics(LVIS) == ['lvis/bbox_AP']
    assert main_metrics(PANOPTIC) == ['coco_panoptic/PQ', 'coco_panoptic/SQ', 'coco_panoptic/RQ']
    assert main_metrics(['aAcc', 'mDice', 'mAcc']) == ['aAcc', 'mDice', 'mAcc']
    assert main_metrics(['pascal_voc/mAP', 'pascal_voc/AP50']) == ['pascal_voc/mAP', 'pascal_voc/AP50']


@pytest.mark.parametrize(
    'entry',
    [
        dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', save_best='odd/key', rule='less'))),
        dict(default_hooks=dict(checkpoint=dict(save_best=['mIoU', 'odd/key'], rule=['greater', 'less']))),
        dict(custom_hooks=[dict(type='EarlyStoppingHook', monitor='odd/key', rule='less')]),
        dict(param_scheduler=dict(type='ReduceOnPlateauLR', monitor='odd/key', rule='less'), default_hooks=None),
    ],
)
def test_the_config_says_that_less_is_better(entry):
    assert is_lower_better('odd/key', Config(entry)) and not is_lower_better('mIoU', Config(entry))


@pytest.mark.parametrize('key', ['abs_rel', 'rmse_log', 'silog', 'val/loss', 'keypoint_error', 'MAE'])
def test_errors_are_better_when_they_are_lower(key):
    assert is_lower_better(key, Config())


@pytest.mark.parametrize('key', ['accuracy/top1', 'pascal_voc/mAP', 'coco_panoptic/PQ', 'mDice', 'KITTI/Car_3D_AP40'])
def test_others_are_better_when_they_are_higher(key):
    assert not is_lower_better(key, Config())


def test_log_that_a_kill_cut_off(tmp_path):
    """In the middle of a line, and of a letter of several bytes."""
    log = tmp_path / '1/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    whole = json.dumps({'猫/AP': 0.5, 'step': 2}, ensure_ascii=False).encode()
    log.write_bytes(b'{"loss": 1.0, "step": 1}\n' + whole + b'\n12\n' + b'{"x": 1}\n' + whole[:3])
    assert read_entries(str(tmp_path)) == [[dict(loss=1.0, step=1), {'猫/AP': 0.5, 'step': 2}]]
