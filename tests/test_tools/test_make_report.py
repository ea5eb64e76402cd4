"""tools/analysis_tools/make_report.py."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from tiny_training import copy_run
from tool_runner import call, check, load, own_process


def test_resume_then_report(mask_rcnn, tmp_path):
    work_dir = copy_run(mask_rcnn, tmp_path / 'run')
    output = check(
        call(
            *('train.py', mask_rcnn['config'], '--work-dir', work_dir, '--resume'),
            *('--cfg-options', 'train_cfg.max_iters=6'),
            **mask_rcnn['data'],
        )
    )
    assert 'iter_4.pth' in output and 'resumed epoch: 0, iter: 4' in output
    assert 'Iter(train) [5/6]' in output and 'Iter(train) [4/6]' not in output

    output = check(call('analysis_tools/make_report.py', work_dir, '--num-images', 2, **mask_rcnn['data']))
    page = work_dir / 'report/index.html'
    assert f'Page of pictures: {page}' in output
    text = page.read_text()
    assert 'coco/bbox_mAP' in text and 'coco/segm_mAP' in text and 'iter_6.pth' in text
    assert 'last (iteration 6)' in text
    assert 'http' not in text  # no network
    sources = [part.split('"')[0] for part in text.split('src="')[1:]]
    assert sources == ['loss.png', 'metrics.png', 'images/000.png', 'images/001.png']
    for source in sources:
        assert cv2.imread(str(page.parent / source)) is not None


def test_report_without_scalars_or_checkpoint(tmp_path):
    tool = load('analysis_tools/make_report.py')
    with pytest.raises(FileNotFoundError, match='no logged loss'):
        tool.read_scalars(tmp_path)
    (tmp_path / 'last_checkpoint').write_text('/somewhere/else/iter_4.pth')
    with pytest.raises(FileNotFoundError, match='--checkpoint'):
        tool.find_checkpoint(tmp_path)
    (tmp_path / 'iter_4.pth').touch()  # the work dir was moved
    assert tool.find_checkpoint(tmp_path) == str(tmp_path / 'iter_4.pth')


def test_report_joins_a_resumed_run(tmp_path):
    """Entries of the first run after the checkpoint that the second one started from are left out."""
    first = [dict(loss=1.0, step=10), dict(loss=2.0, step=20), {'coco/bbox_mAP': 0.1, 'step': 0}]
    first += [dict(loss=3.0, step=30), {'coco/bbox_mAP': 0.2, 'step': 0}]
    second = [dict(loss=4.0, step=30), {'coco/bbox_mAP': 0.3, 'step': 0}]
    for name, entries in (('20260101_1', first), ('20260101_2', second)):
        path = tmp_path / name / 'vis_data/scalars.json'
        path.parent.mkdir(parents=True)
        path.write_text('\n'.join(json.dumps(entry) for entry in entries))
    train, val = load('analysis_tools/make_report.py').read_scalars(tmp_path)
    assert [entry['loss'] for entry in train] == [1.0, 2.0, 4.0]
    assert [(entry['step'], entry['coco/bbox_mAP']) for entry in val] == [(20, 0.1), (30, 0.3)]


def write_run(work_dir, config: str, entries: list[dict]) -> None:
    """A work dir of which only the log and the config are there."""
    (work_dir / '1/vis_data').mkdir(parents=True)
    (work_dir / 'config.py').write_text(config)
    (work_dir / '1/vis_data/scalars.json').write_text('\n'.join(map(json.dumps, entries)))


def test_a_bad_run_and_a_bad_image_do_not_spoil_the_others(retinanet, tmp_path):
    """VOC's metrics have their row and curve; the damaged image and the run without a config are named at the end."""
    work_dir = copy_run(retinanet, tmp_path / 'good')
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [line.replace('coco/bbox_', 'pascal_voc/') for line in log.read_text().splitlines()]
    log.write_text('\n'.join(lines) + '\n{"loss": 0.1, "st')
    root = tmp_path / 'shapes'
    shutil.copytree(retinanet['data']['S6LA_SHAPES_ROOT'], root)
    damaged = sorted((root / 'val').iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:-200])
    (tmp_path / 'bad').mkdir()
    arguments = (tmp_path / 'bad', work_dir, '--num-images', 2, '--out-dir', tmp_path / 'out', '--cfg-options')
    result = call('analysis_tools/make_report.py', *arguments, f'val_dataloader.dataset.data_root={root}')
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert 'bad has no config' in result.stderr and damaged.name in result.stderr and '2 of 4 failed' in result.stderr
    page = (tmp_path / 'out/good/index.html').read_text()
    assert 'pascal_voc/mAP' in page and 'metrics.png' in page and 'images/000.png' in page
    assert 'images/001.png' not in page and 'pascal_voc/mAP: ' in result.stdout


CLASSIFIER = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='S6LAResNet', depth=18, base_channels=8, stem_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=64),
    data_preprocessor=dict(num_classes=2, mean=[0] * 3, std=[255] * 3, to_rgb=True))
dataset = dict(
    type='CustomDataset', data_root={root!r}, metainfo=dict(classes=('cat', 'dog')),
    pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])
val_dataloader = test_dataloader = dict(dataset=dict(type='RepeatDataset', times=2, dataset=dataset))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', save_best='accuracy/top1', rule='greater'))
visualizer = dict(type='UniversalVisualizer', vis_backends=[])
custom_hooks = [dict(type='EarlyStoppingHook', monitor='calibration', rule='less')]
"""


def test_report_of_a_classifier(tmp_path):
    """Curves of percent and of fractions, and the best value in the direction that the config says."""
    for name in ('cat', 'dog'):
        (tmp_path / 'data' / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / 'data' / name / '0.png'), np.full((32, 32, 3), len(name), np.uint8))
    entries = [dict(loss=2.0, step=1), {'accuracy/top1': 50.0, 'calibration': 0.2, 'step': 1}]
    entries += [dict(loss=1.0, step=2), {'accuracy/top1': 40.0, 'calibration': 0.4, 'step': 2}]
    write_run(tmp_path / 'run', CLASSIFIER.format(root=str(tmp_path / 'data')), entries)
    with own_process():
        init_default_scope('mmpretrain')
        model = MODELS.build(Config.fromfile(tmp_path / 'run/config.py').model)
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'run/epoch_1.pth')
    arguments = (tmp_path / 'run', '--checkpoint', tmp_path / 'run/epoch_1.pth', '--num-images', 2)
    check(call('analysis_tools/make_report.py', *arguments))
    page = (tmp_path / 'run/report/index.html').read_text()
    assert '<td>accuracy/top1</td><td>40.000</td><td>50.000</td>' in page
    assert '<td>calibration</td><td>0.400</td><td>0.200 (least)</td>' in page
    sizes = [cv2.imread(str(tmp_path / 'run/report' / name)).shape[0] for name in ('loss.png', 'metrics.png')]
    assert sizes == [480, 960]  # two panels
    assert cv2.imread(str(tmp_path / 'run/report/images/000.png')).shape[:2] == (480, 480)
