"""Two processes on the CPU: the same training as one, sharded or not; signals that reach only some of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from distributed_run import train
from forked import run_ranks, start_ranks
from releases import load, since
from tool_runner import TOOLS, check, environment, run

from s6la_mm.backbones.families import FAMILIES
from s6la_mm.engine.fsdp import s6la_wrap_policy

SMALL = (*('model.backbone.base_channels=8', 'model.neck.in_channels=[8,16,32,64]', 'randomness.deterministic=True'),)


def scalars(work_dir: Path) -> dict[int, float]:
    lines = [line for path in work_dir.glob('*/vis_data/scalars.json') for line in path.open()]
    return {entry['step']: entry['loss'] for entry in map(json.loads, lines) if 'loss' in entry}


def test_two_processes_compute_what_one_computes(tmp_path):
    """The mean over all images is that of the processes' means; what differs is the order of summation, in float32."""
    run_ranks(2, 'tests/distributed_run.py', tmp_path, 2, folder=tmp_path)
    losses, weights = train(tmp_path / 'one', 4)
    (first, state), (second, other) = (load(tmp_path / f'rank{rank}.pt') for rank in (0, 1))
    means = [(a + b) / 2 for a, b in zip(first, second)]
    # Nine steps from the same weights: rounding of 1e-7 grows by the curvature of the loss.
    torch.testing.assert_close(means, losses, rtol=1e-4, atol=1e-5)
    assert len(losses) == 9 and losses[0] != losses[-1]
    for name, value in weights.items():
        torch.testing.assert_close(state[name], other[name], rtol=0, atol=0)
        torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f'{n}: {m}')


def train_ranks(training: dict, work_dir: Path, *arguments: object, config: Path | None = None) -> str:
    """tools/train.py in two processes."""
    work_dir.mkdir(exist_ok=True)
    command = ('train.py', config or training['config'], '--launcher', 'pytorch', '--work-dir', work_dir, *arguments)
    return run_ranks(2, *command, folder=work_dir, **training['data'])


@since(2, 4, 'FSDP on the CPU')
def test_sharded_training_is_the_same_and_resumes(tmp_path, retinanet):
    sharded = tmp_path / 'sharded.py'
    sharded.write_text(
        f'_base_ = {str(retinanet["config"])!r}\n'
        'runner_type = "FlexibleRunner"\nstrategy = dict(type="S6LAFSDPStrategy")\n'
    )
    options = ('--cfg-options', *SMALL)
    train_ranks(retinanet, tmp_path / 'ddp', *options)
    train_ranks(retinanet, tmp_path / 'fsdp', *options, config=sharded)
    assert scalars(tmp_path / 'fsdp') == pytest.approx(scalars(tmp_path / 'ddp'), rel=1e-4)
    whole = load(tmp_path / 'fsdp/iter_4.pth')['state_dict']
    unsharded = load(tmp_path / 'ddp/iter_4.pth')['state_dict']
    assert {name: v.shape for name, v in whole.items()} == {name: v.shape for name, v in unsharded.items()}
    resume = ('--resume', tmp_path / 'fsdp/iter_2.pth')
    train_ranks(retinanet, tmp_path / 'again', *resume, *options, config=sharded)
    resumed = load(tmp_path / 'again/iter_4.pth')['state_dict']
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.parametrize('family', FAMILIES, ids=lambda family: family.name)
def test_a_backbone_is_one_unit(family):
    backbone = family.load()(**family.small)
    assert s6la_wrap_policy(backbone, recurse=False, nonwrapped_numel=0)
    assert not any(s6la_wrap_policy(m, False, 0) for n, m in backbone.named_modules() if n)
    assert s6la_wrap_policy(torch.nn.Linear(1, 1), recurse=True, nonwrapped_numel=0)


def stopped_options(iterations: int) -> tuple:
    return ('--cfg-options', *SMALL, f'train_cfg.max_iters={iterations}', f'train_cfg.val_interval={iterations}')


def assert_saved_and_resumes(work_dir: Path, resume: Callable[..., str]) -> None:
    (saved,) = work_dir.glob('preempted_iter_*.pth')
    done = int(saved.stem.rpartition('_')[2])
    output = resume('--resume', *stopped_options(done + 1))
    assert f'iter: {done}' in output and f'Iter(train) [{done + 1}/{done + 1}]' in output
    assert not saved.exists() and (work_dir / f'iter_{done + 1}.pth').is_file()


def test_signal_to_one_of_two_processes_stops_both(tmp_path, retinanet):
    """As a Slurm that takes one node away: status 75, a checkpoint, and the rest is done after --resume."""
    work_dir = tmp_path / 'w'
    command = ('train.py', retinanet['config'], '--launcher', 'pytorch', '--work-dir', work_dir)
    ranks = start_ranks(2, *command, *stopped_options(4000), folder=tmp_path, **retinanet['data'])
    try:
        ranks[0].wait_for('Iter(train) [   3/')
        os.kill(ranks[1].process.pid, signal.SIGTERM)
        assert [rank.wait() for rank in ranks] == [75, 75], ranks[0].output[-3000:]
    finally:
        for rank in ranks:
            rank.kill()
    assert_saved_and_resumes(work_dir, lambda *options: train_ranks(retinanet, work_dir, *options))


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    children = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    return [process for child in map(int, children) for process in (child, *descendants(child))]


@pytest.mark.nightly
def test_signal_to_one_of_torchruns_processes(tmp_path, retinanet):
    """The same of tools/dist_train.sh, which ends with the status of its processes."""
    command = ('bash', TOOLS / 'dist_train.sh', retinanet['config'], '2', '--work-dir', tmp_path / 'w')
    with (tmp_path / 'log').open('w') as log:
        job = subprocess.Popen(
            [*command, *stopped_options(4000)], stdout=log, stderr=log, env=environment(**retinanet['data'])
        )
    try:
        end = time.monotonic() + 240
        while 'Iter(train) [   3/' not in (tmp_path / 'log').read_text():
            assert job.poll() is None and time.monotonic() < end, (tmp_path / 'log').read_text()[-3000:]
            time.sleep(0.1)
        ranks = [pid for pid in descendants(job.pid) if b'\0RANK=' in Path(f'/proc/{pid}/environ').read_bytes()]
        os.kill(ranks[1], signal.SIGTERM)
        assert job.wait(240) == 75, (tmp_path / 'log').read_text()[-3000:]
    finally:
        if job.poll() is None:
            for pid in [*descendants(job.pid), job.pid]:
                os.kill(pid, signal.SIGKILL)
            job.wait()

    def resume(*options: object) -> str:
        return check(run('dist_train.sh', *command[2:], *options, **retinanet['data']))

    assert_saved_and_resumes(tmp_path / 'w', resume)
