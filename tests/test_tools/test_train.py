"""tools/train.py: what it writes, its options, two processes, and other scopes than detection."""

from __future__ import annotations

import json
import pickle

import pytest
from forked import run_ranks
from mmengine.config import Config
from tool_runner import check, load, run

from s6la_mm.common.errors import UsageError


def test_train_writes_checkpoints(mask_rcnn):
    names = {path.name for path in mask_rcnn['work_dir'].iterdir()}
    assert {'iter_2.pth', 'iter_4.pth', 'last_checkpoint', 'tiny.py'} <= names


def test_amp_and_auto_scale_lr_options(monkeypatch):
    tool = load('train.py')
    amp = tool.enable_amp

    def config(**model: object) -> Config:
        return Config(dict(optim_wrapper=dict(type='OptimWrapper'), model=model))

    monkeypatch.setattr(tool, 'get_device', lambda: 'cuda')
    cfg = config(roi_head={})
    amp(cfg)
    assert cfg.optim_wrapper == dict(type='AmpOptimWrapper', loss_scale='dynamic')

    monkeypatch.setattr(tool, 'get_device', lambda: 'cpu')
    cfg = config()
    amp(cfg)
    assert cfg.optim_wrapper.type == 'CPUAmpOptimWrapper'
    with pytest.raises(UsageError, match='RoIAlign'):
        amp(config(roi_head={}))

    with pytest.raises(UsageError, match='base_batch_size'):
        tool.enable_auto_scale_lr(config())
    cfg = Config(dict(auto_scale_lr=dict(base_batch_size=16)))
    tool.enable_auto_scale_lr(cfg)
    assert cfg.auto_scale_lr.enable


def test_resume_without_checkpoint_keeps_load_from(tmp_path):
    set_resume = load('train.py').set_resume
    cfg = Config(dict(work_dir=str(tmp_path), load_from='pretrained.pth'))
    set_resume(cfg, 'auto')
    assert cfg.load_from == 'pretrained.pth' and not cfg.get('resume')
    with pytest.raises(FileNotFoundError, match='gone'):
        set_resume(cfg, str(tmp_path / 'gone.pth'))


def test_two_processes_train_and_test(mask_rcnn, tmp_path):
    """On the CPU through gloo: the two see half of the images each, 2 × 2 of 16 images a quarter of the rate."""
    options = ('--auto-scale-lr', '--cfg-options', 'auto_scale_lr.base_batch_size=16', 'param_scheduler=None')
    options += ('optim_wrapper.optimizer.lr=2e-3', 'train_cfg.max_iters=2')
    start = ('train.py', mask_rcnn['config'], '--launcher', 'pytorch', '--work-dir', tmp_path / 'w')
    run_ranks(2, *start, *options, folder=tmp_path, **mask_rcnn['data'])
    (scalars,) = (tmp_path / 'w').glob('*/vis_data/scalars.json')
    rates = [entry['lr'] for entry in map(json.loads, scalars.open()) if 'lr' in entry]
    assert rates == pytest.approx([2e-3 * 4 / 16] * 2)
    start = ('test.py', mask_rcnn['config'], tmp_path / 'w/iter_2.pth', '--launcher', 'pytorch')
    options = ('--work-dir', tmp_path / 't', '--out', tmp_path / 'out.pkl')
    options += ('--cfg-options', 'test_dataloader.batch_size=1')
    output = run_ranks(2, *start, *options, folder=tmp_path, **mask_rcnn['data'])
    assert '[2/2]' in output  # 3 images: 2 for each process
    assert len(pickle.loads((tmp_path / 'out.pkl').read_bytes())) == 3


@pytest.mark.nightly
def test_shell_tools_train_and_test(mask_rcnn, tmp_path):
    """The same through torchrun."""
    option = ('--cfg-options', 'train_cfg.max_iters=2')
    check(run('dist_train.sh', mask_rcnn['config'], 2, '--work-dir', tmp_path / 'w d', *option, **mask_rcnn['data']))
    options = ('--work-dir', tmp_path / 't', '--out', tmp_path / 'out.pkl')
    check(run('dist_test.sh', mask_rcnn['config'], tmp_path / 'w d/iter_2.pth', 2, *options, **mask_rcnn['data']))
    assert len(pickle.loads((tmp_path / 'out.pkl').read_bytes())) == 3
