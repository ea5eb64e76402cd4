"""tools/train.py: what it writes, its options, two processes, and other scopes than detection."""

from __future__ import annotations

import pickle

import pytest
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


@pytest.mark.slow
def test_two_processes_train_and_test(mask_rcnn, tmp_path):
    """On the CPU through gloo; the two see half of the images each."""
    option = ('--cfg-options', 'train_cfg.max_iters=2')
    check(run('dist_train.sh', mask_rcnn['config'], 2, '--work-dir', tmp_path / 'w d', *option, **mask_rcnn['data']))
    checkpoint = tmp_path / 'w d/iter_2.pth'
    output = check(
        run(
            *('dist_test.sh', mask_rcnn['config'], checkpoint, 2, '--work-dir', tmp_path / 't'),
            *('--out', tmp_path / 'out.pkl', '--cfg-options', 'test_dataloader.batch_size=1'),
            **mask_rcnn['data'],
        )
    )
    assert '[2/2]' in output  # 3 images: 2 for each process
    assert len(pickle.loads((tmp_path / 'out.pkl').read_bytes())) == 3
