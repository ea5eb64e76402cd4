"""The tools with a config in pure Python: what it trains with, and what is written of it, is as with one of text."""

from __future__ import annotations

import json

import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from pure_config import write_pure
from tool_runner import ROOT, call, check, own_process

from s6la_mm.backbones.architectures import on_meta_device
from s6la_mm.common.configs import build_model, name_classes, package_of, plain_config
from s6la_mm.config_types import type_name
from s6la_mm.engine import make_resumable

SMALL = dict(
    mmdet='quickstart/retinanet_s6la-r18_shapes',
    mmseg='upernet/upernet_s6la-r18_camvid',
    mmpretrain='imagenet/s6la-r50_8xb32_in1k',
)


@pytest.mark.parametrize('package', SMALL)
def test_what_is_asked_of_a_config(package, tmp_path):
    """Its package, its model and the plain network, loops and hooks; and again of the file that a runner writes."""
    pytest.importorskip(package)
    text = Config.fromfile(ROOT / f'configs/{SMALL[package]}.py')
    text.model.backbone.depth = 18
    text.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
    text.default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2))
    path = write_pure(text, tmp_path / 'pure.py')
    for file in (path, tmp_path / 'dump.py'):
        with own_process():
            cfg = Config.fromfile(file)
            assert isinstance(cfg.model.type, str) == (file != path) and cfg.default_scope is None
            assert package_of(cfg) == package
            plain, _ = plain_config(cfg)
            assert plain.model.backbone.type.endswith('.ResNet')
            make_resumable(cfg)
            assert cfg.train_cfg.type == 'ResumableIterBasedTrainLoop'
            hooks = {key: type_name(hook) for key, hook in cfg.default_hooks.items()}
            assert hooks == dict(
                checkpoint='SafeCheckpointHook', preemption='PreemptionHook', nonfinite='NonFiniteHook'
            )
            cfg.model = dict(**cfg.model)  # as a tool makes it: its type is the class itself
            name_classes(cfg)
            cfg.dump(tmp_path / 'dump.py')
            assert "'s6la_mm'" in (tmp_path / 'dump.py').read_text()
    with own_process(), on_meta_device():
        assert type(build_model(cfg).backbone).__name__ == 'S6LAResNet'


@pytest.mark.parametrize('every', [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_tools(every, retinanet, tmp_path):
    """Training in bfloat16, whose config goes on elsewhere; the demo; test and check of the data."""
    data = retinanet['data']
    text = Config.fromfile(retinanet['config'])
    text.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
    text.default_hooks.checkpoint = dict(type='mmengine.CheckpointHook', by_epoch=False, interval=2)
    text.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[text.train_dataloader.dataset])
    del text.default_hooks['preemption'], text.default_hooks['nonfinite']
    config = write_pure(text, tmp_path / 'pure.py')
    check(call('train.py', config, '--work-dir', tmp_path / 'run', '--amp', **data))
    log = ''.join(path.read_text() for path in (tmp_path / 'run').rglob('*.log'))
    for hook in ('SafeCheckpointHook', 'PreemptionHook', 'NonFiniteHook'):
        assert f') {hook} ' in log, hook
    assert ') CheckpointHook ' not in log
    written, weights = tmp_path / 'run/pure.py', tmp_path / 'run/iter_2.pth'
    with own_process():
        runner = Runner.from_cfg(Config.fromfile(written))
        wrapper = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
    assert type(wrapper).__name__ == 'CPUAmpOptimWrapper'
    check(call('image_demo.py', retinanet['images'], config, weights, '--out-dir', tmp_path / 'demo', **data))
    assert 'labels' in json.loads(next((tmp_path / 'demo/preds').iterdir()).read_text())
    if every:
        check(call('test.py', config, weights, '--work-dir', tmp_path / 'test', '--tta', **data))
        assert 'no errors' in check(call('misc/check_dataset.py', config, **data))
