"""tools/test.py."""

from __future__ import annotations

import argparse
import pickle

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from tool_runner import call, check, load
from torch import nn

from s6la_mm.common.errors import UsageError


def test_test_dumps_and_draws(mask_rcnn, tmp_path):
    out = tmp_path / 'predictions.pkl'
    check(
        call(
            *('test.py', mask_rcnn['config'], mask_rcnn['work_dir'] / 'iter_4.pth', '--work-dir', tmp_path),
            *('--out', out, '--show-dir', tmp_path / 'shown'),
            **mask_rcnn['data'],
        )
    )
    predictions = pickle.loads(out.read_bytes())
    assert len(predictions) == 3
    assert {'bboxes', 'labels', 'masks', 'scores'} <= set(predictions[0]['pred_instances'])
    assert {path.name for path in (tmp_path / 'shown').iterdir()} == {
        path.name for path in mask_rcnn['images'].iterdir()
    }


@pytest.mark.nightly
def test_folded_norms(mask_rcnn, tmp_path):
    """The same predictions, of the moving average that the file holds."""
    scores = []
    for options in ((), ('--fuse-conv-bn', '--cfg-options', "custom_hooks=[{'type': 'EMAHook'}]")):
        out = tmp_path / f'{len(options)}.pkl'
        tool = ('test.py', mask_rcnn['config'], mask_rcnn['work_dir'] / 'iter_4.pth', '--work-dir', tmp_path)
        check(call(*tool, '--out', out, *options, **mask_rcnn['data']))
        scores += [[entry['pred_instances']['scores'] for entry in pickle.loads(out.read_bytes())]]
    for plain, fused in zip(*scores):
        assert len(plain) and not plain.equal(fused)  # folding rounds
        torch.testing.assert_close(plain, fused, rtol=1e-3, atol=1e-4)


def test_fuse_hook():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    nn.init.uniform_(model[1].weight)
    images = torch.rand(1, 3, 2, 2)
    expected = model(images)
    load('test.py').FuseHook().before_test(argparse.Namespace(model=model))
    assert isinstance(model[1], nn.Identity)
    torch.testing.assert_close(model(images), expected)


def test_missing_image_in_a_worker(mask_rcnn, tmp_path):
    """The file that a DataLoader worker misses is named, with the config's key."""
    result = call(
        *(
            'test.py',
            mask_rcnn['config'],
            mask_rcnn['work_dir'] / 'iter_4.pth',
            '--work-dir',
            tmp_path,
            '--cfg-options',
        ),
        *('test_dataloader.dataset.data_prefix.img=nowhere/', 'test_dataloader.num_workers=1'),
        **mask_rcnn['data'],
    )
    assert result.returncode == 1
    missing = f'{mask_rcnn["data"]["S6LA_SHAPES_ROOT"]}/nowhere/000000.png'
    message = result.stderr[result.stderr.index('error: ') :]
    assert message.startswith(f'error: {missing} does not exist')
    assert 'test_dataloader.dataset.data_root' in message and 'Traceback' not in message


@pytest.mark.parametrize(
    ('scope', 'expected'),
    [
        ('mmdet', dict(draw=True, test_out_dir='/drawn')),
        ('mmseg', dict(draw=True, interval=1)),
        ('mmpretrain', dict(enable=True, interval=1, out_dir='/drawn')),
    ],
)
def test_show_dir_in_each_scope(scope, expected):
    enable = load('test.py').enable_drawing
    cfg = Config(dict(default_scope=scope, visualizer={}, default_hooks=dict(visualization={})))
    enable(cfg, False, '/drawn', 0)
    assert expected.items() <= cfg.default_hooks.visualization.to_dict().items()
    assert cfg.visualizer.get('save_dir') == ('/drawn' if scope == 'mmseg' else None)
    with pytest.raises(UsageError, match='default_hooks'):
        enable(Config(dict(default_scope=scope)), False, '/drawn', 0)


def test_tta():
    enable = load('test.py').enable_tta

    def config(scope: str, **more: object) -> Config:
        pipeline = [dict(type='LoadImageFromFile'), dict(type='PackDetInputs')]
        loader = dict(dataset=dict(type='RepeatDataset', dataset=dict(pipeline=pipeline)))
        return Config(dict(default_scope=scope, model=dict(type='M'), test_dataloader=loader, **more))

    cfg = config('mmdet')
    enable(cfg)
    assert cfg.model.module.type == 'M'
    init_default_scope('mmdet')
    with MODELS.switch_scope_and_registry(None) as registry:  # as the runner builds it
        assert registry.get(cfg.model.type).__name__ == 'DetTTAModel'
    pipeline = cfg.test_dataloader.dataset.dataset.pipeline
    assert [step.type for step in pipeline] == ['LoadImageFromFile', 'TestTimeAug']
    with pytest.raises(UsageError, match='no tta_pipeline;'):
        enable(config('mmseg', tta_model=dict(type='SegTTAModel')))
    with pytest.raises(UsageError, match='no tta_model and no tta_pipeline'):
        enable(config('mmpretrain'))
    masks = config('mmdet')
    masks.model.roi_head = dict(mask_head=dict(type='FCNMaskHead'))
    with pytest.raises(UsageError, match='mask_head=None'):
        enable(masks)


def test_tta_of_nested_data_sets():
    """Each of them gets its own pipeline, with the mirror image."""
    parts = [[dict(type=f'Load{name}'), dict(type='PackDetInputs')] for name in 'AB']
    inside = dict(type='ConcatDataset', datasets=[dict(pipeline=parts[0]), dict(dataset=dict(pipeline=parts[1]))])
    loader = dict(dataset=dict(type='RepeatDataset', dataset=inside))
    cfg = Config(dict(default_scope='mmdet', model=dict(type='M'), test_dataloader=loader))
    load('test.py').enable_tta(cfg)
    first, second = cfg.test_dataloader.dataset.dataset.datasets
    assert [step.type for step in first.pipeline] == ['LoadA', 'TestTimeAug']
    assert [step.type for step in second.dataset.pipeline] == ['LoadB', 'TestTimeAug']
