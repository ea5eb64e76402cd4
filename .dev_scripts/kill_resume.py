"""Kill a training again and again, resume it each time, and compare it with one that was left alone.

Trains a config twice in deterministic mode: once undisturbed, once with SIGKILLs at random moments of iterations, of
evaluations and of the writing of checkpoints. Ends with status 1 unless the weights, the optimizer's state and every
logged loss are the same to the bit.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from s6la_mm.analysis.logs import read_losses
from s6la_mm.checkpoint.safe_globals import weights_only
from s6la_mm.common.files import temporary_name
from s6la_mm.engine import find_last_good, problem_of

TOOLS = Path(__file__).parents[1] / 'tools'
KINDS = ('iteration', 'evaluation', 'saving')
LINES = {'iteration': re.compile(r'\(train\)\s+\['), 'evaluation': re.compile(r'\(val\)\s+\[')}


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', help='config file; short, with several checkpoints and evaluations')
    parser.add_argument('work_dir', type=Path, help='new folder for both runs')
    parser.add_argument('--kills', type=int, default=30)
    parser.add_argument('--seed', type=int, default=0, help='of the moments of the kills')
    parser.add_argument('--processes', type=int, default=1, help='of one job; with several some kills hit one of them')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='as for train.py')
    args = parser.parse_args()
    if args.kills < 1 or args.processes < 1:
        parser.error('--kills and --processes must be 1 or more')
    if args.work_dir.exists():
        parser.error(f'{args.work_dir} exists: a new folder is needed')
    return args


class Job:
    """A running training whose output can be watched, and which can be killed with all its processes."""

    def __init__(self, args: argparse.Namespace, work_dir: Path) -> None:
        self.work_dir = work_dir
        work_dir.mkdir(parents=True, exist_ok=True)
        options = ['randomness.deterministic=True', 'randomness.seed=0', 'default_hooks.logger.interval=1']
        tail = ['--work-dir', work_dir, '--resume', '--cfg-options', *options, *args.cfg_options]
        if args.processes == 1:
            command = [sys.executable, TOOLS / 'train.py', args.config, *tail]
        else:
            command = ['bash', TOOLS / 'dist_train.sh', args.config, str(args.processes), *tail]
        path = os.path.dirname(sys.executable) + os.pathsep + os.environ['PATH']
        self.log = work_dir / 'output.txt'
        with self.log.open('ab') as log:
            self.start = log.tell()
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, 'PATH': path, 'PYTHONUNBUFFERED': '1'},
            )

    def lines(self) -> list[str]:
        """What this job has written."""
        return self.log.read_bytes()[self.start :].decode(errors='replace').splitlines()

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def wait_for(self, kind: str, rng: random.Random) -> bool:
        """Wait for the moment of a kill; False if the job ends before it comes."""
        wanted = rng.randint(1, 5)
        while self.is_running():
            if kind == 'saving' and any(self.work_dir.glob(temporary_name('*.pth'))):
                time.sleep(rng.uniform(0, 0.02))
                return True
            if kind != 'saving' and sum(bool(LINES[kind].search(line)) for line in self.lines()) >= wanted:
                time.sleep(rng.uniform(0, 0.5))
                return self.is_running()
            time.sleep(0.0005 if kind == 'saving' else 0.02)
        return False

    def kill(self, one: random.Random | None = None) -> None:
        """SIGKILL to all its processes, or first to one training process of several."""
        family = descendants(self.process.pid)
        ranks = [pid for pid in family if is_rank(pid)]
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

    def finish(self) -> dict:
        """Wait for its end, which nobody disturbs, and load its last checkpoint."""
        if self.process.wait() != 0:
            raise SystemExit('error: the training failed:\n' + '\n'.join(self.lines()[-30:]))
        with weights_only():
            return torch.load(find_last_good(str(self.work_dir)), map_location='cpu')


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and theirs; torchrun's are in sessions of their own."""
    try:
        children = [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
    except OSError:
        return []
    return [process for child in children for process in (child, *descendants(child))]


def is_rank(pid: int) -> bool:
    """Whether torchrun has started a process: a worker of a data loader has its parent's environment, RANK included."""
    try:
        parent = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[1]
        own, parents = (b'\0RANK=' in Path(f'/proc/{name}/environ').read_bytes() for name in (pid, parent))
    except OSError:
        return False
    return own and not parents


def differences(a: object, b: object, path: str = '') -> list[str]:
    """Where two nested structures of tensors and numbers are not the same to the bit."""
    a, b = (dict(enumerate(value)) if isinstance(value, (list, tuple)) else value for value in (a, b))
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in differences(a[key], b[key], f'{path}.{key}')]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    return [] if type(a) is type(b) and not isinstance(a, dict) and a == b else [path]


def main() -> None:
    """Run both trainings and compare them."""
    args = parse_args()
    rng = random.Random(args.seed)
    start = time.time()
    whole_job = Job(args, args.work_dir / 'undisturbed')
    reference = whole_job.finish()
    print(f'undisturbed: iteration {reference["meta"]["iter"]}, {time.time() - start:.0f} s', flush=True)

    kills: list[str] = []
    damaged = failed = 0
    while len(kills) < args.kills:
        kind = KINDS[len(kills) % len(KINDS)] if rng.random() < 0.5 else rng.choice(KINDS)
        job = Job(args, args.work_dir / 'killed')
        if not job.wait_for(kind, rng):
            if job.process.wait() != 0:
                failed += 1
                print('\n'.join(job.lines()[-20:]), flush=True)
            break
        hits_one = args.processes > 1 and rng.random() < 0.5
        job.kill(rng if hits_one else None)
        kills.append(kind)
        last = find_last_good(str(job.work_dir))
        broken = [path for path in job.work_dir.glob('*.pth') if problem_of(str(path))]
        damaged += len(broken)
        print(
            f'kill {len(kills):2}: {kind:10} {"one process" if hits_one else "the job":11} '
            f'last whole checkpoint {last and os.path.basename(last)}, damaged {len(broken)}',
            flush=True,
        )
    job = Job(args, args.work_dir / 'killed')
    survivor = job.finish()

    known = dict(read_losses(str(whole_job.work_dir)))
    logged = read_losses(str(job.work_dir))
    unequal = {step for step, loss in logged if known.get(step) != loss}
    print(f'\n{len(kills)} kills: {", ".join(f"{kills.count(kind)} during {kind}" for kind in KINDS)}')
    print(f'{len(kills)} resumes, failed: {failed}, damaged checkpoints: {damaged}')
    print(f'iterations computed: {len(logged)} for {reference["meta"]["iter"]}; losses that differ: {len(unequal)}')
    found = {key: differences(reference[key], survivor[key]) for key in ('state_dict', 'optimizer', 'param_schedulers')}
    for key, paths in found.items():
        print(f'{key}: {"the same to the bit" if not paths else f"{len(paths)} differ: {paths[:3]}"}')
    print(f'{time.time() - start:.0f} s in all')
    ended_early = len(kills) < args.kills
    if ended_early:
        print(f'the training ended before the {args.kills} kills: give it more iterations')
    raise SystemExit(int(bool(ended_early or failed or damaged or unequal or any(found.values()))))


if __name__ == '__main__':
    main()
