"""Two processes on the CPU: the same training as one, sharded or not; signals that reach only some of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from distributed_run import train
from tool_runner import ROOT, TOOLS, check, environment, run

from s6la_mm.backbones.families import FAMILIES
from s6la_mm.datasets import generate_shapes
from s6la_mm.engine.fsdp import s6la_wrap_policy

CONFIG = ROOT / 'configs/quickstart/retinanet_s6la-r18_shapes.py'
SMALL = (
    *('val_dataloader.dataset.indices=2', 'train_dataloader.batch_size=2', 'default_hooks.logger.interval=1'),
    *('model.backbone.base_channels=8', 'model.neck.in_channels=[8,16,32,64]', 'randomness.deterministic=True'),
)


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> dict[str, str]:
    root = generate_shapes(tmp_path_factory.mktemp('data') / 'shapes')
    return dict(S6LA_SHAPES_ROOT=str(root))


def scalars(work_dir: Path) -> dict[int, float]:
    lines = [line for path in sorted(work_dir.glob('*/vis_data/scalars.json')) for line in path.open()]
    return {entry['step']: entry['loss'] for entry in map(json.loads, lines) if 'loss' in entry}


def test_two_processes_compute_what_one_computes(tmp_path):
    """The mean over all images is that of the processes' means; what differs is the order of summation, in float32."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    env = environment(PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / 'tests')]))
    done = subprocess.run(
        [*command, str(ROOT / 'tests/distributed_run.py'), str(tmp_path), '2'],
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    losses, weights = train(tmp_path / 'one', 4)
    (first, state), (second, other) = (torch.load(tmp_path / f'rank{rank}.pt', weights_only=True) for rank in (0, 1))
    means = [(a + b) / 2 for a, b in zip(first, second)]
    # Nine steps from the same weights: rounding of 1e-7 grows by the curvature of the loss.
    torch.testing.assert_close(means, losses, rtol=1e-4, atol=1e-5)
    assert len(losses) == 9 and losses[0] != losses[-1]
    for name, value in weights.items():
        torch.testing.assert_close(state[name], other[name], rtol=0, atol=0)
        torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f'{n}: {m}')


@pytest.mark.slow
def test_sharded_training_is_the_same_and_resumes(tmp_path, shapes):
    (tmp_path / 'fsdp.py').write_text(
        f'_base_ = {str(CONFIG)!r}\nrunner_type = "FlexibleRunner"\nstrategy = dict(type="S6LAFSDPStrategy")\n'
    )
    options = ('--cfg-options', *SMALL, 'train_cfg.max_iters=4', 'default_hooks.checkpoint.interval=2')
    check(run('dist_train.sh', CONFIG, 2, '--work-dir', tmp_path / 'ddp', *options, **shapes))
    check(run('dist_train.sh', tmp_path / 'fsdp.py', 2, '--work-dir', tmp_path / 'fsdp', *options, **shapes))
    assert scalars(tmp_path / 'fsdp') == pytest.approx(scalars(tmp_path / 'ddp'), rel=1e-4)
    whole = torch.load(tmp_path / 'fsdp/iter_4.pth', weights_only=True)['state_dict']
    unsharded = torch.load(tmp_path / 'ddp/iter_4.pth', weights_only=True)['state_dict']
    assert {name: v.shape for name, v in whole.items()} == {name: v.shape for name, v in unsharded.items()}
    resume = ('--resume', tmp_path / 'fsdp/iter_2.pth')
    again = tmp_path / 'again'
    check(run('dist_train.sh', tmp_path / 'fsdp.py', 2, '--work-dir', again, *resume, *options, **shapes))
    resumed = torch.load(again / 'iter_4.pth', weights_only=True)['state_dict']
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.parametrize('family', FAMILIES, ids=lambda family: family.name)
def test_a_backbone_is_one_unit(family):
    backbone = family.load()(**family.small)
    assert s6la_wrap_policy(backbone, recurse=False, nonwrapped_numel=0)
    assert not any(s6la_wrap_policy(m, False, 0) for n, m in backbone.named_modules() if n)
    assert s6la_wrap_policy(torch.nn.Linear(1, 1), recurse=True, nonwrapped_numel=0)


class Job:
    """A training in the background."""

    def __init__(self, tmp_path: Path, *command: object, **env: str) -> None:
        self.log = tmp_path / 'log.txt'
        with self.log.open('w') as file:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment(**env),
                start_new_session=True,
            )

    def wait_for(self, text: str) -> None:
        end = time.time() + 240
        while text not in self.log.read_text():
            assert self.process.poll() is None and time.time() < end, self.log.read_text()[-3000:]
            time.sleep(0.1)


@pytest.mark.slow
def test_signal_to_one_of_two_processes_stops_both(tmp_path, shapes):
    """As a Slurm that takes one node away: status 75, a checkpoint, and the rest is done after --resume."""
    options = ('--cfg-options', *SMALL, 'train_cfg.max_iters=400', 'train_cfg.val_interval=400')
    job = Job(tmp_path, 'bash', TOOLS / 'dist_train.sh', CONFIG, 2, '--work-dir', tmp_path / 'w', *options, **shapes)
    try:
        job.wait_for('Iter(train) [  3/')
        pids = subprocess.run(['pgrep', '-f', str(tmp_path)], capture_output=True, text=True).stdout.split()
        rank = [pid for pid in pids if b'\0RANK=1\0' in Path(f'/proc/{pid}/environ').read_bytes()]
        os.kill(min(map(int, rank)), signal.SIGTERM)  # the others are workers of its data loader
        assert job.process.wait(120) == 75, job.log.read_text()[-3000:]
    finally:
        subprocess.run(['pkill', '-9', '-f', str(tmp_path)])
    (saved,) = (tmp_path / 'w').glob('preempted_iter_*.pth')
    done = int(saved.stem.rpartition('_')[2])
    options = ('--cfg-options', *SMALL, f'train_cfg.max_iters={done + 1}', f'train_cfg.val_interval={done + 1}')
    output = check(run('dist_train.sh', CONFIG, 2, '--work-dir', tmp_path / 'w', '--resume', *options, **shapes))
    assert f'iter: {done}' in output and f'Iter(train) [{done + 1}/{done + 1}]' in output
    assert not saved.exists() and (tmp_path / f'w/iter_{done + 1}.pth').is_file()
