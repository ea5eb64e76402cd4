"""Segmentation through the command line tools: ADE20K's real layout, wrong labels, predictions with a legend."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from tool_runner import ROOT, call, check, load

pytest.importorskip('mmseg')

ADE = Path(os.environ.get('ADE20K_ROOT', ROOT.parent / 'shared/data/ade_sample/ADEChallengeData2016'))
TINY = ROOT / 'configs/upernet/upernet_s6la-r18_camvid.py'
NARROW = ('--cfg-options', 'model.backbone.base_channels=8', 'model.backbone.stem_channels=8')
SHORT = (
    *('model.decode_head.in_channels=[8,16,32,64]', 'model.decode_head.channels=8'),
    *('model.auxiliary_head.in_channels=32', 'model.auxiliary_head.channels=8'),
    *('train_cfg.max_iters=1', 'train_cfg.val_interval=1'),
    *('default_hooks.checkpoint.interval=1', 'default_hooks.logger.interval=1'),
    *('train_dataloader.batch_size=2', 'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False'),
    *('val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False'),
    *('test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False'),
)


def make_camvid(folder: Path, label: int = 11) -> Path:
    """Three grey images of CamVid's layout, a third of each labelled ``label``."""
    labels = np.repeat([[0, 3, label]], 20, axis=1).repeat(48, axis=0).astype(np.uint8)
    for split in ('train', 'val', 'test'):
        for name in ('images', 'annotations'):
            (folder / name / split).mkdir(parents=True)
        for index in range(3):
            image = np.full((*labels.shape, 3), 50 + 60 * index, np.uint8)
            cv2.imwrite(str(folder / f'images/{split}/{index}.jpg'), image)
            cv2.imwrite(str(folder / f'annotations/{split}/{index}.png'), labels)
    return folder


def test_train_test_report_and_demo(tmp_path):
    """A UperNet of 8 channels trains one step on three images, is tested and draws."""
    data = dict(CAMVID_ROOT=str(make_camvid(tmp_path / 'data')))
    output = check(call('train.py', TINY, '--work-dir', tmp_path / 'run', *NARROW, *SHORT, **data))
    assert 'Checking the labels of 3 label maps' in output and 'mIoU' in output
    config, checkpoint = tmp_path / 'run/upernet_s6la-r18_camvid.py', tmp_path / 'run/iter_1.pth'
    shutil.rmtree(tmp_path / 'data/images/train')  # a test needs only what it tests
    output = check(call('test.py', config, checkpoint, '--work-dir', tmp_path / 't', '--show-dir', tmp_path / 'shown'))
    assert 'mIoU' in output and len(list((tmp_path / 'shown').rglob('*.png'))) == 3
    output = check(call('analysis_tools/make_report.py', tmp_path / 'run', '--num-images', 2, **data))
    page = (tmp_path / 'run/report/index.html').read_text()
    assert '<td>mIoU</td>' in page and 'mIoU: ' in output and 'rgb(128, 64, 128)"></span>road' in page
    sources = [part.split('"')[0] for part in page.split('src="')[1:]]
    assert sources == ['loss.png', 'metrics.png', 'images/000.png', 'images/001.png']
    assert cv2.imread(str(tmp_path / 'run/report/images/000.png')).shape == (48, 120, 3)  # ground truth, prediction
    images = tmp_path / 'data/images/val'
    check(call('image_demo.py', images, config, checkpoint, '--out-dir', tmp_path / 'demo', '--opacity', 1))
    share = json.loads((tmp_path / 'demo/preds/0.json').read_text())['share']
    assert sum(share.values()) == pytest.approx(1) and list(share.values()) == sorted(share.values(), reverse=True)
    labels = cv2.imread(str(tmp_path / 'demo/preds/0.png'), cv2.IMREAD_UNCHANGED)
    picture = cv2.imread(str(tmp_path / 'demo/vis/0.png'))
    assert picture.shape[0] == labels.shape[0] == 48 and picture.shape[1] > labels.shape[1] == 60
    # Opaque, the picture is the palette; the legend repeats it, with the most frequent class first.
    assert (picture[10, 70] == picture[:, :60][labels == np.bincount(labels.ravel()).argmax()][0]).all()


def test_a_label_of_no_class_stops_the_training_before_it_starts(tmp_path):
    data = dict(CAMVID_ROOT=str(make_camvid(tmp_path / 'data', label=12)))
    result = call('train.py', TINY, '--work-dir', tmp_path / 'run', *NARROW, *SHORT, **data)
    assert result.returncode == 1 and 'Iter(train)' not in result.stdout
    message = result.stderr[result.stderr.index('error: ') :]
    assert 'label 12: 2880 pixels in 3 files' in message and 'Traceback' not in message


@pytest.mark.skipif(not ADE.is_dir(), reason=f'no ADE20K in {ADE}: set ADE20K_ROOT')
def test_upernet_on_ade20k(tmp_path):
    """UperNet S6LA-ResNet-50, untrained, narrow head, on small real images with ADE20K's class list and metric."""
    import torch
    from config_steps import parse
    from mmengine.registry import MODELS, DefaultScope

    path = ROOT / 'configs/upernet/upernet_s6la-r50_4xb4-80k_ade20k-512x512.py'
    narrow = ('model.decode_head.channels=16', 'model.auxiliary_head.channels=16')
    cfg = parse(path)
    cfg.merge_from_dict({option.split('=')[0]: 16 for option in narrow})
    cfg.model.pretrained = None
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'untrained.pth')
    workers = ('test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False')
    output = check(
        call(
            *('test.py', path, tmp_path / 'untrained.pth', '--work-dir', tmp_path / 'work', '--cfg-options'),
            *narrow,
            *('model.pretrained=None', *workers, 'test_dataloader.dataset.pipeline.1.scale=(512,128)'),
            ADE20K_ROOT=str(ADE),
        )
    )
    count = len(list((ADE / 'annotations/validation').glob('*.png')))
    assert f'Iter(test) [{count}/{count}]' in output
    assert 'wall' in output and 'mIoU: ' in output  # a row for each class, then the mean


def test_legend():
    with_legend = load('image_demo.py').with_legend
    picture = np.full((50, 30, 3), 7, np.uint8)
    entries = [((255, 0, 0), 'road 60.0%'), ((0, 255, 0), 'sky 30.0%'), ((0, 0, 255), 'a longer name 10.0%')]
    out = with_legend(picture, entries)
    assert out.dtype == np.uint8 and out.shape[0] == 50 and (out[:, :30] == 7).all()
    assert tuple(out[10, 40]) == (255, 0, 0) and tuple(out[32, 40]) == (0, 255, 0)
    # Two lines fit into 50 pixels: the third has a column of its own, as wide as its text.
    first = with_legend(picture, entries[:2])
    assert out.shape[1] > first.shape[1] > 60 and tuple(out[10, first.shape[1] + 10]) == (0, 0, 255)
    assert with_legend(picture[:10], entries).shape[0] == 22
