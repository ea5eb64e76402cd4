"""Kill a training again and again, resume it each time, and compare it with one that was left alone.

Trains a config twice in deterministic mode: once undisturbed, once with SIGKILLs at random moments of iterations, of
evaluations and of the writing of checkpoints. Ends with status 1 unless the weights, the optimizer's state and every
logged loss are the same to the bit.
"""

from __future__ import annotations

import argparse
import glob
import os
import os.path as osp
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import torch

import s6la_mm  # noqa: F401  (allow-lists what checkpoints hold)
from s6la_mm.analysis.logs import read_losses
from s6la_mm.common.files import temporary_name
from s6la_mm.engine import find_last_good, problem_of

TOOLS = osp.join(osp.dirname(osp.dirname(osp.abspath(__file__))), 'tools')
KINDS = ('iteration', 'evaluation', 'saving')
_LINES = {'iteration': re.compile(r'\(train\)\s+\['), 'evaluation': re.compile(r'\(val\)\s+\[')}


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', help='config file; short, with several checkpoints and evaluations')
    parser.add_argument('work_dir', help='new folder for both runs')
    parser.add_argument('--kills', type=int, default=30)
    parser.add_argument('--seed', type=int, default=0, help='of the moments of the kills')
    parser.add_argument('--processes', type=int, default=1, help='of one job; with several some kills hit one of them')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='as for train.py')
    args = parser.parse_args()
    if args.kills < 1 or args.processes < 1:
        parser.error('--kills and --processes must be 1 or more')
    if osp.exists(args.work_dir):
        parser.error(f'{args.work_dir} exists: a new folder is needed')
    return args


class Job:
    """A running training whose output can be watched, and which can be killed with all its processes."""

    def __init__(self, args: argparse.Namespace, work_dir: str) -> None:
        self.work_dir = work_dir
        os.makedirs(work_dir, exist_ok=True)
        self.log = osp.join(work_dir, 'output.txt')
        options = ['randomness.deterministic=True', 'randomness.seed=0', 'default_hooks.logger.interval=1']
        tail = ['--work-dir', work_dir, '--resume', '--cfg-options', *options, *args.cfg_options]
        if args.processes == 1:
            command = [sys.executable, osp.join(TOOLS, 'train.py'), args.config, *tail]
        else:
            command = ['bash', osp.join(TOOLS, 'dist_train.sh'), args.config, str(args.processes), *tail]
        path = osp.dirname(sys.executable) + os.pathsep + os.environ['PATH']
        self._file = open(self.log, 'ab')
        self._start = self._file.tell()
        self.process = subprocess.Popen(
            command,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, 'PATH': path, 'PYTHONUNBUFFERED': '1'},
        )

    def lines(self) -> list[str]:
        """What this job has written."""
        with open(self.log, errors='replace') as file:
            file.seek(self._start)
            return file.read().splitlines()

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def kill(self, one: random.Random | None = None) -> None:
        """SIGKILL to all its processes, or first to one training process of several."""
        family = descendants(self.process.pid)
        ranks = [pid for pid in family if _is_rank(pid)]
        if one is not None and ranks:
            os.kill(one.choice(ranks), signal.SIGKILL)
            try:
                self.process.wait(60)  # torchrun ends the others
            except subprocess.TimeoutExpired:
                pass
        for pid in [self.process.pid, *family]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and theirs; torchrun's are in sessions of their own."""
    try:
        with open(f'/proc/{pid}/task/{pid}/children') as file:
            children = [int(child) for child in file.read().split()]
    except OSError:
        return []
    return [process for child in children for process in (child, *descendants(child))]


def _is_rank(pid: int) -> bool:
    """Whether torchrun has started a process: a worker of a data loader has its parent's environment, RANK included."""
    try:
        with open(f'/proc/{pid}/environ', 'rb') as file:
            environment = file.read()
        with open(f'/proc/{pid}/stat') as file:
            parent = int(file.read().rpartition(')')[2].split()[1])
        with open(f'/proc/{parent}/environ', 'rb') as file:
            return b'\0RANK=' in environment and b'\0RANK=' not in file.read()
    except OSError:
        return False


def wait_for(job: Job, kind: str, rng: random.Random) -> bool:
    """Wait for the moment of a kill; False if the job ends before it comes."""
    if kind == 'saving':
        pattern = osp.join(job.work_dir, temporary_name('*.pth'))
        while job.is_running():
            if glob.glob(pattern):
                time.sleep(rng.uniform(0, 0.02))
                return True
            time.sleep(0.0005)
        return False
    wanted = rng.randint(1, 5)
    while job.is_running():
        lines = [line for line in job.lines() if _LINES[kind].search(line)]
        if len(lines) >= wanted:
            time.sleep(rng.uniform(0, 0.5))
            return job.is_running()
        time.sleep(0.02)
    return False


def differences(a: object, b: object, path: str = '') -> list[str]:
    """Where two nested structures of tensors and numbers are not the same to the bit."""
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.shape == b.shape and a.dtype == b.dtype
        return [] if same and torch.equal(a, b) else [path]
    if isinstance(a, dict):
        if not isinstance(b, dict) or a.keys() != b.keys():
            return [path]
        return [d for key in a for d in differences(a[key], b[key], f'{path}.{key}')]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [path]
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f'{path}.{i}')]
    return [] if a == b else [path]


def finish(job: Job) -> dict:
    """Wait for a job that nobody disturbs and load its last checkpoint."""
    if job.process.wait() != 0:
        raise SystemExit('error: the training failed:\n' + '\n'.join(job.lines()[-30:]))
    return torch.load(find_last_good(job.work_dir), map_location='cpu', weights_only=True)


def main() -> None:
    """Run both trainings and compare them."""
    args = parse_args()
    rng = random.Random(args.seed)
    reference_dir, killed_dir = (osp.join(args.work_dir, name) for name in ('undisturbed', 'killed'))
    start = time.time()
    reference = finish(Job(args, reference_dir))
    print(f'undisturbed: iteration {reference["meta"]["iter"]}, {time.time() - start:.0f} s', flush=True)

    kills: Counter = Counter()
    damaged = failed = 0
    while sum(kills.values()) < args.kills:
        kind = KINDS[sum(kills.values()) % len(KINDS)] if rng.random() < 0.5 else rng.choice(KINDS)
        job = Job(args, killed_dir)
        if not wait_for(job, kind, rng):
            if job.process.wait() != 0:
                failed += 1
                print('\n'.join(job.lines()[-20:]), flush=True)
            break
        hits_one = args.processes > 1 and rng.random() < 0.5
        job.kill(rng if hits_one else None)
        kills[kind] += 1
        whole = find_last_good(killed_dir)
        broken = [path for path in glob.glob(osp.join(killed_dir, '*.pth')) if problem_of(path)]
        damaged += len(broken)
        print(
            f'kill {sum(kills.values()):2}: {kind:10} {"one process" if hits_one else "the job":11} '
            f'last whole checkpoint {whole and osp.basename(whole)}, damaged {len(broken)}',
            flush=True,
        )
    survivor = finish(Job(args, killed_dir))

    known = dict(read_losses(reference_dir))
    logged = read_losses(killed_dir)
    unequal = sorted({step for step, loss in logged if known.get(step) != loss})
    parts = {key: differences(reference[key], survivor[key]) for key in ('state_dict', 'optimizer', 'param_schedulers')}
    print(f'\n{sum(kills.values())} kills: {", ".join(f"{kills[kind]} during {kind}" for kind in KINDS)}')
    print(f'{sum(kills.values())} resumes, failed: {failed}, damaged checkpoints: {damaged}')
    print(f'iterations computed: {len(logged)} for {reference["meta"]["iter"]}; losses that differ: {len(unequal)}')
    for key, found in parts.items():
        print(f'{key}: {"the same to the bit" if not found else f"{len(found)} differ: {found[:3]}"}')
    print(f'{time.time() - start:.0f} s in all')
    ended_early = sum(kills.values()) < args.kills
    if ended_early:
        print(f'the training ended before the {args.kills} kills: give it more iterations')
    raise SystemExit(int(bool(ended_early or failed or damaged or unequal or any(parts.values()))))


if __name__ == '__main__':
    main()
