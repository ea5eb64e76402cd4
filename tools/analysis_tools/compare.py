"""Train the models of a plan under equal budgets, several seeds each, and report what they reach and what they cost.

Runs that are done are not repeated, and runs that were stopped go on where they were: call it again. Data order,
augmentation and random numbers of a seed are the same for all models.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import os.path as osp
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner.utils import set_random_seed

import s6la_mm  # noqa: F401  (registers the backbones)
from s6la_mm.analysis.flops import count_flops
from s6la_mm.backbones.architectures import on_meta_device
from s6la_mm.benchmarks.timing import PeakMemory, alternating_rounds, describe_device, run_in_child
from s6la_mm.common.cli import clear_errors, explain, require_writable
from s6la_mm.common.configs import build_model, random_batch, without_downloads
from s6la_mm.common.errors import UsageError
from s6la_mm.common.files import read_json, write_atomically
from s6la_mm.comparison.plan import Plan, Run, read_plan, take_earlier
from s6la_mm.comparison.report import versions_text, write_report
from s6la_mm.engine import PREEMPTED_STATUS, find_last_good

TOOLS = osp.dirname(osp.dirname(osp.abspath(__file__)))


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('plan', help='what to compare, see s6la_mm.comparison.plan.read_plan')
    parser.add_argument('--out', help='folder of the runs (default: work_dirs/compare/<plan>)')
    parser.add_argument('--report', help='folder of the report (default: OUT/report)')
    parser.add_argument('--jobs', type=int, default=max(torch.cuda.device_count(), 1), help='trainings at a time')
    parser.add_argument('--threads', type=int, help='CPU threads of a training (default: cores / jobs)')
    parser.add_argument(
        '--earlier',
        nargs='+',
        default=[],
        metavar='RESULTS',
        help='results.json of earlier reports: what has finished there with the same settings is not trained again',
    )
    parser.add_argument('--rounds', type=int, default=10, help='rounds of the measurement of times; 0: no times')
    parser.add_argument('--retry', action='store_true', help='train again what has failed')
    parser.add_argument('--report-only', action='store_true', help='train nothing, report what is there')
    args = parser.parse_args()
    args.out = args.out or osp.join('work_dirs', 'compare', osp.splitext(osp.basename(args.plan))[0])
    args.report = args.report or osp.join(args.out, 'report')
    if args.jobs < 1 or args.rounds < 0 or (args.threads is not None and args.threads < 1):
        parser.error('--jobs and --threads must be positive, --rounds not negative')
    args.threads = args.threads or max((os.cpu_count() or 1) // args.jobs, 1)
    return args


def check_models(plan: Plan) -> None:
    """Builds every model, without memory for its weights.

    Raises:
        UsageError: If one cannot be built.
    """
    for variant in plan.variants:
        cfg = variant.build_config()
        without_downloads(cfg.model)
        try:
            with on_meta_device():
                build_model(cfg)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f'the model of {variant.name} cannot be built: {error}') from error


def check_data(plan: Plan) -> None:
    """Builds every data set of the trainings and evaluations once, which reads annotations and lists folders.

    Raises:
        UsageError: If files are missing; the message says what to set.
    """
    seen = set()
    for variant in plan.variants:
        cfg = variant.build_config()
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            if str(loader.dataset) in seen:
                continue
            seen.add(str(loader.dataset))
            try:
                DATASETS.build(loader.dataset)
            except (FileNotFoundError, UsageError) as error:
                raise UsageError(f'the data of {variant.name} cannot be read: {explain(error, cfg)}') from error


def prepare(run: Run, start: Run | None, settings: str) -> None:
    """Writes the config of a run.

    Raises:
        UsageError: If the run that it starts from has no checkpoint.
    """
    cfg = run.variant.build_config()
    cfg.randomness = dict(cfg.get('randomness', {}), seed=run.seed)
    cfg.work_dir = run.folder
    if start is not None:
        cfg.load_from = find_last_good(start.folder)
        if cfg.load_from is None:
            raise UsageError(f'{start.folder} has no checkpoint any more, from which {run.variant.name} starts')
    run.write_config(cfg, settings)


@contextmanager
def lock(folder: str) -> Iterator[int]:
    """Holds a folder, for this process and for those that get the file descriptor, until the last of them has ended.

    Raises:
        UsageError: If it is held: a call that was killed leaves its trainings running.
    """
    with open(osp.join(folder, 'lock'), 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f'trainings run in {folder} already: wait for them, or stop them') from None
        yield file.fileno()


class Training(NamedTuple):
    """A training that runs, on the GPU of that name, if any; its output begins there in the run's output.txt."""

    process: subprocess.Popen
    run: Run
    device: str | None
    offset: int


def launch(run: Run, device: str | None, threads: int, held: int) -> Training:
    """Starts a training, or goes on with it."""
    environment = {**os.environ, 'OMP_NUM_THREADS': str(threads), 'PYTHONUNBUFFERED': '1'}
    if device is not None:
        environment['CUDA_VISIBLE_DEVICES'] = device
    with open(osp.join(run.folder, 'output.txt'), 'ab') as output:
        process = subprocess.Popen(
            [sys.executable, osp.join(TOOLS, 'train.py'), run.config_path, '--work-dir', run.folder, '--resume'],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[held],
            start_new_session=True,  # a Ctrl-C reaches it through this process, once
        )
        return Training(process, run, device, output.tell())


def reason_of(training: Training) -> str:
    """Why a training failed: what it said last, or the signal that killed it."""
    status = training.process.returncode
    if status < 0:
        return f'killed by {signal.Signals(-status).name}'
    with open(osp.join(training.run.folder, 'output.txt'), 'rb') as file:
        file.seek(training.offset)
        lines = [line.strip() for line in file.read().decode(errors='replace').splitlines() if line.strip()]
    named = [line for line in lines if line.startswith('error: ')]
    return (named or lines or [f'status {status}'])[-1].removeprefix('error: ')[:400]


def gpus() -> list[str]:
    """The visible GPUs, by the names that CUDA_VISIBLE_DEVICES gives them."""
    if not torch.cuda.is_available():
        return []
    names = os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',')
    count = torch.cuda.device_count()
    return [name.strip() for name in names[:count]] if names[0] else [str(index) for index in range(count)]


def is_due(run: Run, retry: bool) -> bool:
    """Whether a run is to be trained, or to go on."""
    outcome = run.outcome()
    return outcome is None or (retry and outcome['status'] == 'failed')


def train_all(plan: Plan, runs: list[Run], args: argparse.Namespace) -> bool:
    """Trains what is due, ``--jobs`` at a time; False if a signal stopped it."""
    stopped: list[int] = []
    active: list[Training] = []
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        numbers.append(signal.SIGHUP)
    handlers = [signal.signal(number, lambda number, _: stopped.append(number)) for number in numbers]
    try:
        with lock(args.out) as held:
            _train_all(plan, runs, args, active, stopped, held)
    finally:
        for training in active:
            training.process.send_signal(signal.SIGTERM)  # which saves a checkpoint
        for training in active:
            training.process.wait()
        for number, handler in zip(numbers, handlers):
            signal.signal(number, handler)
    return not stopped and all(run.outcome() for run in runs)


def _train_all(
    plan: Plan, runs: list[Run], args: argparse.Namespace, active: list[Training], stopped: list[int], held: int
) -> None:
    by_key = {(run.variant.name, run.seed): run for run in runs}
    hardware = f'{describe_device(get_device(), args.threads)} ({args.jobs} at a time), {versions_text()}'
    waiting = [run for run in runs if is_due(run, args.retry)]
    for run in waiting:
        run.forget_outcome()  # else what starts from it would take the old failure for the new outcome
    free = list(islice(cycle(gpus() or [None]), args.jobs))
    while not stopped:
        for training in [training for training in active if training.process.poll() is not None]:
            active.remove(training)
            free.append(training.device)
            finish(training, plan.metric, hardware)
        ready = [run for run in waiting if is_ready(run, by_key)]
        if not active and not ready:
            break  # what still waits, waits for one that somebody else has stopped
        while ready and free:
            run = ready.pop(0)
            waiting.remove(run)
            start = by_key.get((run.variant.start, run.seed))
            if start is not None and start.outcome()['status'] != 'finished':
                run.write_outcome('failed', f'{start.variant.name}, from which it starts, has failed')
                continue
            prepare(run, start, plan.digests[run.variant.name])
            active.append(launch(run, free.pop(0), args.threads, held))
            print(f'{time.strftime("%H:%M:%S")} {run.variant.name}, seed {run.seed}: started', flush=True)
        time.sleep(0.2)


def is_ready(run: Run, by_key: dict[tuple[str, int], Run]) -> bool:
    """Whether the run that it starts from, if there is one, has ended."""
    start = by_key.get((run.variant.start, run.seed))
    return start is None or start.outcome() is not None


def finish(training: Training, metric: str, hardware: str) -> None:
    """Notes how a training ended; one that somebody has stopped has not."""
    run, status = training.run, training.process.returncode
    if status == 0:
        run.write_outcome('finished', trained_on=hardware)
    elif status not in (PREEMPTED_STATUS, -signal.SIGTERM, -signal.SIGINT):
        run.write_outcome('failed', reason_of(training), hardware)
    progress = run.progress(metric)
    text = f'{metric} {progress.value:.4g}' if progress.value is not None else progress.reason
    now = time.strftime('%H:%M:%S')
    print(f'{now} {run.variant.name}, seed {run.seed}: {progress.status} {text}'.rstrip(), flush=True)


def build_step(cfg: Config, shape: tuple[int, int], device: str) -> partial:
    """A training step of a config with random images."""
    set_random_seed(0)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    without_downloads(cfg.model)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).to(device).train()
    batch = random_batch(cfg.default_scope, model, cfg.train_dataloader.batch_size, shape)
    return partial(model.train_step, batch, build_optim_wrapper(model, cfg.optim_wrapper))


def training_memory(cfg: Config, shape: tuple[int, int], device: str) -> int:
    """Peak memory in bytes of training steps, weights and the optimizer included; for a process of its own."""
    with PeakMemory(device) as peak:
        step = build_step(cfg, shape, device)
        for _ in range(2):
            step()
    return peak.bytes


def costs_key(plan: Plan) -> dict:
    """What times and memory depend on, but for the machine."""
    return {'shape': plan.shape and list(plan.shape), 'settings': plan.digests}


def measure_costs(plan: Plan, rounds: int) -> dict:
    """Parameters, FLOPs of an image, seconds of a training step in alternating rounds and peak memory, by variant."""
    device = get_device()
    configs = {variant.name: variant.build_config() for variant in plan.variants}
    costs: dict = {'plan': costs_key(plan), 'hardware': describe_device(device), 'models': {}}
    for name, cfg in configs.items():
        without_downloads(cfg.model)
        parameters, flops = count_flops(build_model(cfg), *plan.shape)[-1][1:]
        memory = run_in_child(training_memory, cfg, plan.shape, device)
        costs['models'][name] = dict(parameters=parameters, flops=flops, memory=memory)
    steps = {name: build_step(cfg, plan.shape, device) for name, cfg in configs.items()}
    for name, seconds in alternating_rounds(steps, rounds, device).items():
        costs['models'][name]['seconds'] = seconds
    return costs


def main() -> None:
    """Train, measure, report."""
    args = parse_args()
    with clear_errors():
        plan = read_plan(args.plan)
        if not args.report_only:
            check_models(plan)
            check_data(plan)
        require_writable(args.out)
        out = osp.abspath(args.out)
        runs = [Run(v, seed, osp.join(out, v.name, f'seed_{seed}')) for seed in plan.seeds for v in plan.variants]
        for run in runs:
            run.check_settings(plan.digests[run.variant.name])
        runs = take_earlier(plan, runs, args.earlier)
        complete = args.report_only or train_all(plan, runs, args)
        anew = shlex.join(arg for arg in sys.argv if arg != '--report-only')
        path = osp.join(out, 'costs.json')
        costs = read_json(path)
        if costs and costs.get('plan') != costs_key(plan):
            costs = None  # of the plan as it was
        tables = write_report(plan, runs, costs, args.report, anew)
        if complete and plan.shape and args.rounds and not costs:
            print('measuring times and memory', flush=True)
            try:
                costs = measure_costs(plan, args.rounds)
                write_atomically(path, json.dumps(costs))
                tables = write_report(plan, runs, costs, args.report, anew)
            except (UsageError, RuntimeError) as error:  # such as too little memory: the report is there all the same
                print(f'times and memory cannot be measured: {error}', file=sys.stderr)
        print(tables)
    if not complete:
        print('stopped: the same command goes on', file=sys.stderr)
        sys.exit(PREEMPTED_STATUS)
    sys.exit(any(run.progress(plan.metric).status != 'finished' for run in runs))


if __name__ == '__main__':
    main()
