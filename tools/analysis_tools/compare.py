"""Train the models of a plan under equal budgets, several seeds each, and report what they reach and what they cost.

Trainings run one after the other. Runs that are done are not repeated, and runs that were stopped go on where they
were: call it again. Data order, augmentation and random numbers of a seed are the same for all models.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import os.path as osp
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import BinaryIO

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS
from mmengine.runner.utils import set_random_seed

import s6la_mm  # noqa: F401  (registers the backbones)
from s6la_mm.analysis.flops import count_flops
from s6la_mm.backbones.architectures import on_meta_device
from s6la_mm.benchmarks.timing import PeakMemory, alternating_rounds, describe_device, run_in_child
from s6la_mm.common.cli import clear_errors, explain, require_writable
from s6la_mm.common.configs import build_model, enter_scope, package_of, random_batch, without_downloads
from s6la_mm.common.errors import UsageError
from s6la_mm.common.files import read_json, write_atomically
from s6la_mm.common.model_configs import input_channels
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
    parser.add_argument(
        '--shard',
        type=parse_shard,
        default=(1, 1),
        metavar='I/N',
        help='train only this share of the runs, from 1/N to N/N: for several machines, or several GPUs with '
        'CUDA_VISIBLE_DEVICES; all write into the same --out, and each reports what is there of all runs',
    )
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
    if args.rounds < 0:
        parser.error('--rounds must not be negative')
    return args


def parse_shard(text: str) -> tuple[int, int]:
    """Reads ``I/N``."""
    match = re.fullmatch(r'(\d+)/(\d+)', text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f'{text!r} must be I/N with I from 1 to N')
    return int(match[1]), int(match[2])


def shard_of(runs: Sequence[Run], index: int, count: int) -> list[Run]:
    """The runs of one shard, such as one of several machines; a run is in that of the run from which it starts.

    Args:
        runs (Sequence[Run]): All runs of a plan, each behind the one that it starts from.
        index (int): From 1 to ``count``.
        count (int): Number of shards.
    """
    first: dict[str, str] = {}
    for run in runs:
        first[run.variant.name] = first.get(run.variant.start or '', run.variant.name)
    chains = list(dict.fromkeys((first[run.variant.name], run.seed) for run in runs))
    mine = chains[index - 1 :: count]
    return [run for run in runs if (first[run.variant.name], run.seed) in mine]


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
        enter_scope(cfg)
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            if str(loader.dataset) in seen:
                continue
            seen.add(str(loader.dataset))
            try:
                DATASETS.build(loader.dataset)
            except Exception as error:  # each data set has its own way to say that files are missing
                reason = explain(error, cfg) or f'{type(error).__name__}: {error}'
                raise UsageError(f'the data of {variant.name} cannot be read: {reason}') from error


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


def train_all(plan: Plan, runs: Sequence[Run], retry: bool) -> None:
    """Trains what is due, one run after the other, until a signal comes, which the training gets too and saves."""
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        numbers.append(signal.SIGHUP)
    handlers = [signal.signal(number, signal.default_int_handler) for number in numbers]
    by_key = {(run.variant.name, run.seed): run for run in runs}
    try:
        for run in runs:
            if is_due(run, retry):
                os.makedirs(run.folder, exist_ok=True)
                text = train(run, by_key.get((run.variant.start, run.seed)), plan, retry)
                print(f'{time.strftime("%H:%M:%S")} {run.variant.name}, seed {run.seed}: {text}'.rstrip(), flush=True)
    except KeyboardInterrupt:
        pass  # what has no outcome goes on the next time
    finally:
        for number, handler in zip(numbers, handlers):
            signal.signal(number, handler)


def is_due(run: Run, retry: bool) -> bool:
    """Whether a run is to be trained, or to go on."""
    outcome = run.outcome()
    return outcome is None or (retry and outcome['status'] == 'failed')


def train(run: Run, start: Run | None, plan: Plan, retry: bool) -> str:
    """Trains a run unless another process does, and notes how it ended; says so.

    Raises:
        KeyboardInterrupt: If a signal has stopped it.
    """
    with open(osp.join(run.folder, 'output.txt'), 'ab') as output:
        try:
            # The training has this file too: it holds the run as long as one of the two processes lives.
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 'passed over, another process trains it'
        if not is_due(run, retry):
            return 'passed over, another process has trained it'
        run.forget_outcome()  # else what starts from it would take the old failure for the new outcome
        before = start and start.outcome()
        if start and before is None:
            return f'waits for {start.variant.name}, from which it starts'
        if start and before['status'] != 'finished':
            run.write_outcome('failed', f'{start.variant.name}, from which it starts, has failed')
        else:
            prepare(run, start, plan.digests[run.variant.name])
            print(f'{time.strftime("%H:%M:%S")} {run.variant.name}, seed {run.seed}: started', flush=True)
            offset, status = output.tell(), run_training(run, output)
            hardware = f'{describe_device(get_device())}, {versions_text()}'
            if status == 0:
                run.write_outcome('finished', trained_on=hardware)
            elif status not in (PREEMPTED_STATUS, -signal.SIGTERM, -signal.SIGINT):  # else somebody has stopped it
                run.write_outcome('failed', reason_of(status, output.name, offset), hardware)
    progress = run.progress(plan.metric)
    figure = f'{plan.metric} {progress.value:.4g}' if progress.value is not None else progress.reason
    return f'{progress.status} {figure}'


def run_training(run: Run, output: BinaryIO) -> int:
    """Runs a training, or goes on with it: its exit status."""
    process = subprocess.Popen(
        [sys.executable, osp.join(TOOLS, 'train.py'), run.config_path, '--work-dir', run.folder, '--resume'],
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, 'PYTHONUNBUFFERED': '1'},
        start_new_session=True,  # a Ctrl-C reaches it through this process, once
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()  # it saves a checkpoint
        process.wait()
        raise


def reason_of(status: int, path: str, offset: int) -> str:
    """Why a training failed: the signal that killed it, or what it said last in the file, from an offset on."""
    if status < 0:
        return f'killed by {signal.Signals(-status).name}'
    with open(path, 'rb') as file:
        file.seek(offset)
        lines = [line.strip() for line in file.read().decode(errors='replace').splitlines() if line.strip()]
    named = [line for line in lines if line.startswith('error: ')]
    return (named or lines or [f'status {status}'])[-1].removeprefix('error: ')[:400]


def build_step(cfg: Config, shape: tuple[int, int], device: str) -> partial:
    """A training step of a config with random images."""
    set_random_seed(0)
    enter_scope(cfg)
    without_downloads(cfg.model)
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)  # as the runner does
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).to(device).train()
    size, channels = cfg.train_dataloader.batch_size, input_channels(cfg.model)
    batch = random_batch(package_of(cfg), model, size, shape, channels=channels)
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
        parameters, flops = count_flops(build_model(cfg), *plan.shape, input_channels(cfg.model))[-1][1:]
        memory = run_in_child(training_memory, cfg, plan.shape, device)
        costs['models'][name] = dict(parameters=parameters, flops=flops, memory=memory)
    steps = {name: build_step(cfg, plan.shape, device) for name, cfg in configs.items()}
    for name, seconds in alternating_rounds(steps, rounds, device).items():
        costs['models'][name]['seconds'] = seconds
    return costs


def report(plan: Plan, runs: Sequence[Run], args: argparse.Namespace) -> str:
    """Writes the report, and measures what it lacks once all runs have ended or a report is all that is wanted."""
    anew = re.sub(r' --report-only| --shard[ =]\S+', '', shlex.join(sys.argv))
    path = osp.join(args.out, 'costs.json')
    try:
        costs = read_json(path)
    except UsageError:  # damaged: measured anew
        costs = None
    if costs and costs.get('plan') != costs_key(plan):
        costs = None  # of the plan as it was
    tables = write_report(plan, runs, costs, args.report, anew)
    is_time = args.report_only or all(run.outcome() for run in runs)
    if is_time and plan.shape and args.rounds and not costs:
        print('measuring times and memory', flush=True)
        try:
            costs = measure_costs(plan, args.rounds)
            write_atomically(path, json.dumps(costs))
            tables = write_report(plan, runs, costs, args.report, anew)
        except (UsageError, RuntimeError) as error:  # such as too little memory: the report is there all the same
            print(f'times and memory cannot be measured: {error}', file=sys.stderr)
    return tables


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
        mine = shard_of(runs, *args.shard)
        if not args.report_only:
            train_all(plan, mine, args.retry)
        with open(osp.join(out, 'report.lock'), 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # other shards write the same files
            print(report(plan, runs, args))
    if not args.report_only and any(run.outcome() is None for run in mine):
        print('not all runs have ended: the same command goes on', file=sys.stderr)
        sys.exit(PREEMPTED_STATUS)
    sys.exit(any(run.progress(plan.metric).status != 'finished' for run in mine))


if __name__ == '__main__':
    main()
