"""The config decides: what a shipped one trains with is the same under our tool and under those of others."""

from __future__ import annotations

import pytest
import toy_runner  # noqa: F401  (registers ToyModel and ToyDataset)
from config_steps import ROOT, parse
from mmengine.runner import Runner

from s6la_mm.engine import build_runner, make_resumable

NAMES = (
    'quickstart/retinanet_s6la-r18_shapes.py',
    'faster_rcnn/faster-rcnn_s6la-r50_fpn_1x_coco.py',
    'upernet/upernet_s6la-r50_4xb4-80k_ade20k-512x512.py',
    'imagenet/s6la-deit-small_4xb256_in1k.py',
)


def trained_with(runner: Runner) -> tuple:
    """The loop, its length and how it makes batches, the hooks in their order, and the optimizer's groups."""
    wrapper = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
    groups = [{**group, 'params': len(group['params'])} for group in wrapper.optimizer.param_groups]
    loop = runner.train_loop
    hooks = [(type(hook).__name__, hook.priority) for hook in runner.hooks]
    length = loop.max_epochs, loop.max_iters, loop.val_interval
    collate = loop.dataloader.collate_fn.func  # a partial
    return type(loop).__name__, length, collate, hooks, groups


@pytest.mark.parametrize('name', NAMES)
def test_plain_runner_trains_as_the_tool_does(name, tmp_path):
    results = []
    for tool in ('plain', 'ours'):
        cfg = parse(ROOT / name)
        cfg.model, cfg.visualizer, cfg.work_dir = dict(type='ToyModel'), None, str(tmp_path / tool)
        cfg.experiment_name = f'{tmp_path.name}-{tool}'
        cfg.pop('data_preprocessor', None)
        cfg.optim_wrapper.type = 'OptimWrapper'
        cfg.train_dataloader.dataset = dict(type='ToyDataset')
        cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
        if tool == 'ours':
            make_resumable(cfg)
        results.append(trained_with(Runner.from_cfg(cfg) if tool == 'plain' else build_runner(cfg)))
    assert results[0] == results[1]
    loop, hooks = results[0][0], [hook for hook, _ in results[0][3]]
    assert loop.startswith('Resumable')
    assert {'SafeCheckpointHook', 'PreemptionHook', 'NonFiniteHook'} <= set(hooks) and 'CheckpointHook' not in hooks
