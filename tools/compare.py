"""Train the models of a plan under equal budgets, several seeds each, and report what they reach and what they cost.

Runs that are done are not repeated, and runs that were stopped go on where they were: call it again. Data order,
augmentation and random numbers of a seed are the same for all models.
"""

from __future__ import annotations

import argparse
import json
import os
import os.path as osp
import shlex
import signal
import subprocess
import sys
import time
from functools import partial

import torch
from get_flops import build_model, count
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner.utils import set_random_seed

import s6la_mm  # noqa: F401  (registers the backbones)
from s6la_mm.backbones.architectures import on_meta_device
from s6la_mm.engine import PREEMPTED_STATUS, find_last_good
from s6la_mm.utils import UsageError
from s6la_mm.utils.benchmark import PeakMemory, alternating_rounds, describe_device, run_in_child
from s6la_mm.utils.capacity import random_batch, without_downloads
from s6la_mm.utils.cli import clear_errors, explain, require_writable
from s6la_mm.utils.comparison import Plan, Run, read_plan, take_earlier
from s6la_mm.utils.comparison_report import write_report
from s6la_mm.utils.files import read_json, write_atomically

TOOLS = osp.dirname(osp.abspath(__file__))


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('plan', help='what to compare, see s6la_mm.utils.comparison.read_plan')
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


def prepare(run: Run, start: Run | None) -> None:
    """Writes the config of a run.

    Raises:
        UsageError: If its folder holds a run of another config, or the run that it starts from has no checkpoint.
    """
    cfg = run.variant.build_config()
    cfg.randomness = dict(cfg.get('randomness', {}), seed=run.seed)
    cfg.work_dir = run.folder
    if start is not None:
        cfg.load_from = find_last_good(start.folder)
        if cfg.load_from is None:
            raise UsageError(f'{start.folder} has no checkpoint any more, from which {run.variant.name} starts')
    if not osp.exists(run.config_path):
        os.makedirs(run.folder, exist_ok=True)
        write_atomically(run.config_path, cfg.pretty_text)
        return
    with open(run.config_path, encoding='utf-8') as file:
        if file.read() != cfg.pretty_text:
            raise UsageError(f'{run.folder} has a run of another config: choose another --out, or delete that folder')


def launch(run: Run, device: int | None, threads: int) -> subprocess.Popen:
    """Starts a training, or goes on with it."""
    environment = {**os.environ, 'OMP_NUM_THREADS': str(threads), 'PYTHONUNBUFFERED': '1'}
    if device is not None:
        environment['CUDA_VISIBLE_DEVICES'] = str(device)
    with open(osp.join(run.folder, 'output.txt'), 'ab') as output:
        return subprocess.Popen(
            [sys.executable, osp.join(TOOLS, 'train.py'), run.config_path, '--work-dir', run.folder, '--resume'],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a Ctrl-C reaches it through this process, once
        )


def reason_of(run: Run, status: int) -> str:
    """What a failed training said last."""
    with open(osp.join(run.folder, 'output.txt'), errors='replace') as file:
        lines = [line.strip() for line in file if line.strip()]
    named = [line for line in lines if line.startswith('error: ')]
    return (named or lines or [f'status {status}'])[-1].removeprefix('error: ')[:400]


def is_due(run: Run, retry: bool) -> bool:
    """Whether a run is to be trained, or to go on."""
    outcome = run.outcome()
    return outcome is None or (retry and outcome['status'] == 'failed')


def train_all(plan: Plan, runs: list[Run], args: argparse.Namespace) -> bool:
    """Trains what is due, ``--jobs`` at a time; False if a signal stopped it."""
    stopped: list[int] = []
    active: list[tuple[subprocess.Popen, Run, int | None]] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, lambda number, _: stopped.append(number)) for number in numbers]
    try:
        _train_all(plan, runs, args, active, stopped)
    finally:
        for process, _, _ in active:
            process.send_signal(signal.SIGTERM)  # which saves a checkpoint
        for process, _, _ in active:
            process.wait()
        for number, handler in zip(numbers, handlers):
            signal.signal(number, handler)
    return not stopped


def _train_all(plan: Plan, runs: list[Run], args: argparse.Namespace, active: list[tuple], stopped: list[int]) -> None:
    by_key = {(run.variant.name, run.seed): run for run in runs}
    hardware = f'{describe_device(get_device(), args.threads)} ({args.jobs} at a time)'
    waiting = [run for run in runs if is_due(run, args.retry)]
    for run in waiting:
        run.forget_outcome()  # else what starts from it would take the old failure for the new outcome
    free = [index % torch.cuda.device_count() if torch.cuda.is_available() else None for index in range(args.jobs)]
    while (waiting or active) and not stopped:
        for entry in [entry for entry in active if entry[0].poll() is not None]:
            active.remove(entry)
            free.append(entry[2])
            finish(entry[1], entry[0].returncode, plan.metric, hardware)
        ready = [run for run in waiting if is_ready(run, by_key)]
        while ready and free:
            run = ready.pop(0)
            waiting.remove(run)
            start = by_key.get((run.variant.start, run.seed))
            if start is not None and start.outcome()['status'] != 'finished':
                run.write_outcome('failed', f'{start.variant.name}, from which it starts, has failed')
                continue
            prepare(run, start)
            device = free.pop(0)
            active.append((launch(run, device, args.threads), run, device))
            print(f'{time.strftime("%H:%M:%S")} {run.variant.name}, seed {run.seed}: started', flush=True)
        time.sleep(0.2)


def is_ready(run: Run, by_key: dict[tuple[str, int], Run]) -> bool:
    """Whether the run that it starts from, if there is one, has ended."""
    start = by_key.get((run.variant.start, run.seed))
    return start is None or start.outcome() is not None


def finish(run: Run, status: int, metric: str, hardware: str) -> None:
    """Notes how a training ended; one that a signal stopped has not."""
    if status == 0:
        run.write_outcome('finished', trained_on=hardware)
    elif status > 0 and status != PREEMPTED_STATUS:
        run.write_outcome('failed', reason_of(run, status), hardware)
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


def measure_costs(plan: Plan, rounds: int) -> dict:
    """Parameters, FLOPs of an image, seconds of a training step in alternating rounds and peak memory, by variant."""
    device = get_device()
    configs = {variant.name: variant.build_config() for variant in plan.variants}
    costs: dict = {'hardware': describe_device(device), 'models': {}}
    for name, cfg in configs.items():
        without_downloads(cfg.model)
        parameters, flops = count(build_model(cfg), *plan.shape)[-1][1:]
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
        runs = take_earlier(plan, runs, args.earlier)
        complete = args.report_only or train_all(plan, runs, args)
        path = osp.join(out, 'costs.json')
        costs = read_json(path)
        if costs and set(costs['models']) != {variant.name for variant in plan.variants}:
            costs = None  # of the plan as it was
        if complete and plan.shape and args.rounds and not costs:
            print('measuring times and memory', flush=True)
            costs = measure_costs(plan, args.rounds)
            write_atomically(path, json.dumps(costs))
        anew = shlex.join(arg for arg in sys.argv if arg != '--report-only')
        print(write_report(plan, runs, costs, args.report, anew))
    if not complete:
        print('stopped: the same command goes on', file=sys.stderr)
        sys.exit(PREEMPTED_STATUS)
    sys.exit(any(run.progress(plan.metric).status != 'finished' for run in runs))


if __name__ == '__main__':
    main()
