"""Resuming by the command line: what is there, what is damaged, what is of another model; and the tools around it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from forked import Forked
from releases import load
from tiny_training import copy_run
from tool_runner import ROOT, call, check

from s6la_mm.engine import find_last_good


def test_damaged_newest_checkpoint_is_passed_over(retinanet, tmp_path):
    work_dir = copy_run(retinanet, tmp_path / 'run')
    newest = work_dir / 'iter_4.pth'
    whole = newest.read_bytes()
    newest.write_bytes(whole[: len(whole) // 2])
    more = ('--cfg-options', 'train_cfg.max_iters=4')
    output = check(
        call('train.py', retinanet['config'], '--work-dir', work_dir, '--resume', *more, **retinanet['data'])
    )
    assert 'iter_4.pth is passed over' in output and 'resumed epoch: 0, iter: 2' in output
    assert newest.stat().st_size == pytest.approx(len(whole), rel=0.01)  # written anew


def test_what_cannot_be_resumed_from(retinanet, tmp_path):
    start = ('train.py', retinanet['config'], '--work-dir', tmp_path / 'w')
    (tmp_path / 'half.pth').write_bytes((retinanet['work_dir'] / 'iter_2.pth').read_bytes()[:5000])
    result = call(*start, '--resume', tmp_path / 'half.pth', **retinanet['data'])
    assert result.returncode == 1 and 'half.pth cannot be resumed from' in result.stderr
    other = ('--cfg-options', 'model.backbone.state_dim=8')
    result = call(*start, '--resume', retinanet['work_dir'] / 'iter_2.pth', *other, **retinanet['data'])
    assert result.returncode == 1, result.stderr[-2000:]
    assert 'error: the checkpoint to resume from is of another model' in result.stderr
    assert not list((tmp_path / 'w').glob('*.pth'))


@pytest.mark.parametrize('place', ['a file', 'read-only'])
def test_work_dir_that_cannot_be_written_to(retinanet, tmp_path, place):
    if place == 'a file':
        (tmp_path / 'file').write_text('')
        work_dir = tmp_path / 'file'
    else:
        work_dir = Path('/proc/s6la')  # nobody can make a folder there, not even root
        if not os.path.isdir('/proc'):
            pytest.skip('no /proc on this system')
    result = call('train.py', retinanet['config'], '--work-dir', work_dir, **retinanet['data'])
    assert result.returncode == 1 and 'choose another --work-dir' in result.stderr and 'Traceback' not in result.stderr


@pytest.mark.smoke
def test_killed_training_goes_on_to_the_same_end(retinanet, tmp_path):
    """A SIGKILL at any moment costs the iterations since the last checkpoint and changes none of the others."""
    work_dir = tmp_path / 'killed'
    options = ('--cfg-options', 'randomness.seed=0', 'randomness.deterministic=True')
    endless = ('train_cfg.max_iters=1000', 'train_cfg.val_interval=1000')
    command = ('train.py', retinanet['config'], '--work-dir', work_dir)
    process = Forked(*command, *options, *endless, log=tmp_path / 'log', **retinanet['data'])
    try:
        process.wait_for('Iter(train) [   5/1000]')
    finally:
        process.kill()
    last = int(Path(find_last_good(str(work_dir))).stem.rpartition('_')[2])
    end = (f'train_cfg.max_iters={last + 2}', f'train_cfg.val_interval={last + 2}')
    output = check(call(*command, '--resume', *options, *end, **retinanet['data']))
    assert f'iter: {last}' in output and f'Iter(train) [{last + 1}/{last + 2}]' in output
    check(call('train.py', retinanet['config'], '--work-dir', tmp_path / 'whole', *options, *end, **retinanet['data']))
    states = [load(folder / f'iter_{last + 2}.pth')['state_dict'] for folder in (work_dir, tmp_path / 'whole')]
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.nightly
def test_kill_resume(retinanet, tmp_path):
    """Two kills; the script itself compares weights, optimizer and losses to the bit."""
    options = ('train_cfg.max_iters=12', 'train_cfg.val_interval=4', 'default_hooks.checkpoint.interval=2')
    more = ('--kills', 2, '--seed', 1, '--cfg-options', *options)
    output = check(
        call('.dev_scripts/kill_resume.py', retinanet['config'], tmp_path / 'kills', *more, **retinanet['data'])
    )
    assert '2 resumes, failed: 0, damaged checkpoints: 0' in output and 'losses that differ: 0' in output
    assert output.count('the same to the bit') == 3


def test_check_config(retinanet, tmp_path):
    options = ('--processes', 2, '--cfg-options', 'train_dataloader.persistent_workers=True')  # there are no workers
    output = check(call('misc/check_config.py', retinanet['config'], *options, **retinanet['data']))
    for line in ('trained    3 iterations', 'resumed to the bit', 'predicted', 'memory', 'time', 'disk'):
        assert line in output
    assert 'an epoch of 2 with 2 processes' in output  # 8 images, 2 in a batch
    assert not (ROOT / 'work_dirs/tiny').exists()


def test_check_config_names_parameters_without_a_gradient_and_a_decayed_state(retinanet, tmp_path):
    config = tmp_path / 'unused.py'
    # The last stage is computed for nobody.
    model = 'dict(backbone=dict(out_indices=(0, 1, 2)), neck=dict(in_channels=[32, 64, 128]))'
    decay = "dict(_delete_=True, type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05))"
    config.write_text(f'_base_ = {str(retinanet["config"])!r}\nmodel = {model}\noptim_wrapper = {decay}\n')
    result = call('misc/check_config.py', config, **retinanet['data'])
    assert result.returncode == 1, result.stderr[-2000:]
    assert 'parameters got no gradient: backbone.' in result.stderr and 'Traceback' not in result.stderr
    assert re.search(r'weight decay pulls on \d+ parameters of the state: .*A_log', result.stderr)


@pytest.mark.parametrize('tool', ['train.py', pytest.param('misc/check_config.py', marks=pytest.mark.nightly)])
def test_classes_of_the_head_are_those_of_the_data(tool, retinanet, tmp_path):
    options = ('--work-dir', tmp_path, '--cfg-options', 'model.bbox_head.num_classes=7')
    result = call(tool, retinanet['config'], *options, **retinanet['data'])
    assert result.returncode == 1 and 'model.bbox_head has num_classes=7, the train and val data' in result.stderr
    assert 'Traceback' not in result.stderr and not list(tmp_path.glob('*.pth'))
