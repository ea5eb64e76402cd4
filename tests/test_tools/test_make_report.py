"""tools/analysis_tools/make_report.py."""

from __future__ import annotations

import json

import cv2
import pytest
from tiny_training import copy_run
from tool_runner import call, check, load


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
