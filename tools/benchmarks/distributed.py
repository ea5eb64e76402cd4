"""Training throughput, communication, memory and scaling efficiency over 1 to K processes, with S6LA and without.

On the CPU the processes work together through gloo and share the cores and threads; on GPUs through NCCL, one each.

S6LA and the plain network, with and without synchronised gradients, alternate in the same processes, so that their
ratios are paired by round. Process counts are measured one after the other.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, barrier
from mmengine.runner import Runner
from torch import nn
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes
from torch.utils.data import DataLoader

import s6la_mm  # noqa: F401  (registers the backbones)
from s6la_mm.benchmarks.timing import PeakMemory, Spread, alternating_rounds, describe_device, paired_ratios, spread
from s6la_mm.common.cli import add_cfg_options, clear_errors, explain, load_config
from s6la_mm.common.configs import (
    enter_scope,
    is_s6la,
    package_of,
    plain_config,
    random_batch,
    without_downloads,
    without_worker_options,
)
from s6la_mm.common.errors import UsageError
from s6la_mm.common.model_configs import input_channels
from s6la_mm.config_types import type_name
from s6la_mm.engine.cpu import init_cpu_process_group

S6LA, PLAIN = 'S6LA', 'plain'
RANDOM_SHAPES = dict(mmdet=(800, 1344), mmseg=(512, 512))  # height and width by scope, without the data set


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of a detector or segmentor')
    parser.add_argument('--processes', type=int, nargs='+', default=[1, 2], help='the first is the reference')
    parser.add_argument('--batch', type=int, help="images per process (default: the config's batch size)")
    parser.add_argument('--strong', action='store_true', help='--batch is divided among the processes')
    parser.add_argument('--iterations', type=int, default=10, help='timed rounds after 2 that are not counted')
    parser.add_argument('--shape', type=int, nargs=2, metavar=('H', 'W'), help="random images, not the config's data")
    parser.add_argument('--baseline', action='store_true', help='the plain backbone too, in the same processes')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--cores', type=int, default=len(os.sched_getaffinity(0)), help='CPU cores for all processes together'
    )
    parser.add_argument('--timeout', type=float, default=1800.0, help='seconds after which processes are stopped')
    parser.add_argument('--json', action='store_true', help='the last line of the output is the result in JSON')
    add_cfg_options(parser)
    args = parser.parse_args()
    numbers = [*args.processes, args.iterations, args.cores, *(args.shape or [])]
    if min([*numbers, args.timeout]) <= 0 or (args.batch is not None and args.batch < 1):
        parser.error('--processes, --batch, --iterations, --shape, --cores and --timeout must be positive')
    return args


class Job(NamedTuple):
    """What the processes of a group do.

    Attributes:
        config (str): Config file.
        cfg_options (dict, optional): Overrides of it.
        device (str): ``'cpu'`` or ``'cuda'``.
        batch (int): Images of a process.
        rounds (int): Rounds that are counted; none: only the peak memory is measured.
        shape (tuple[int, int], optional): Height and width of random images; None: the config's data set.
        networks (tuple[str]): ``'S6LA'``, ``'plain'`` or both.
    """

    config: str
    cfg_options: dict | None
    device: str
    batch: int
    rounds: int = 10
    shape: tuple[int, int] | None = None
    networks: tuple[str, ...] = (S6LA,)


def run_group(job: Job, processes: int, threads: int, timeout: float) -> dict:
    """Starts the processes of a job, waits for them and returns what the first found; see :func:`measure_training`.

    Args:
        job (Job): What they do.
        processes (int): How many; on GPUs each has its own.
        threads (int): CPU threads of each.
        timeout (float): Seconds after which they are stopped.

    Raises:
        UsageError: If one of them stops with an error or dies, or after the timeout. None of them is left then.
    """
    variables: dict[str, object] = dict(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads, WORLD_SIZE=processes)
    variables.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=get_free_port(), PYTHONWARNINGS='ignore')
    if job.device == 'cpu':
        variables['CUDA_VISIBLE_DEVICES'] = ''
    if 'lo' in (name for _, name in socket.if_nameindex()):  # the host's name need not resolve to an address
        variables.update(GLOO_SOCKET_IFNAME='lo', NCCL_SOCKET_IFNAME='lo')
    with tempfile.TemporaryDirectory() as folder:
        with mock.patch.dict(os.environ, {name: str(value) for name, value in variables.items()}):
            group = start_processes(run_process, (job, folder), processes, join=False, start_method='spawn')
        end = time.monotonic() + timeout
        try:
            while not group.join(max(0.0, end - time.monotonic())):
                if time.monotonic() > end:
                    raise UsageError(
                        f'{processes} processes were not done after {timeout:.0f} s and have been stopped: raise '
                        '--timeout, or lower --iterations, --batch or --shape'
                    )
        except ProcessRaisedException as error:
            reason = str(error).strip().splitlines()[-1].partition(': ')[2]
            raise UsageError(f'process {error.error_index} of {processes} stopped: {reason}') from error
        except ProcessExitedException as error:
            raise UsageError(f'of {processes} processes, {error.msg}: is there enough memory?') from error
        finally:
            for process in group.processes:
                process.kill()
                process.join()
        return json.loads((Path(folder) / 'result.json').read_text())


def run_process(rank: int, job: Job, folder: str) -> None:
    """What the process of a rank runs; the first one leaves its result in the folder."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    try:
        result = measure_training(job, folder)
    except Exception as error:  # whose last line the parent shows
        reason = explain(error) or f'{type(error).__name__}: {error}'.partition('\n')[0]
        raise UsageError(' '.join(reason.split())) from error
    if rank == 0:
        (Path(folder) / 'result.json').write_text(json.dumps(result))


def measure_training(job: Job, work_dir: str) -> dict:
    """What each process does: builds the networks and times their iterations.

    The learning rate is zero: the optimizer does its work, and all rounds time the same network, though gradients were
    not synchronised in some. All processes wait for each other at the end of an iteration, so that it lasts as long as
    that of the slowest.

    Args:
        job (Job): What is measured.
        work_dir (str): Folder for the runners' logs.

    Returns:
        dict: By network ``times`` (of all rounds, with and without synchronisation), ``waits`` for data (None for
            random images) and ``gradient_bytes``; ``peak_bytes`` of the first network; and what ``data`` was.
    """
    distributed = int(os.environ.get('WORLD_SIZE', 1)) > 1
    cfg = load_config(job.config, job.cfg_options, work_dir, 'pytorch' if distributed else 'none')
    make_measurable(cfg, job.device)
    enter_scope(cfg)
    init_cpu_process_group(cfg)
    configs = {name: copy.deepcopy(cfg) for name in job.networks}
    if PLAIN in configs and is_s6la(cfg):
        configs[PLAIN], _ = plain_config(cfg)
    first, *others = configs
    waits: dict[str, list[float]] = {name: [] for name in configs}
    with PeakMemory(job.device) as peak:
        runners = {first: build_runner(configs[first], first)}
        batches, data = make_batches(cfg, runners[first].model, job)
        for _ in range(2):
            iterate(runners[first], batches, waits[first])
    times: dict[str, dict[str, list[float]]] = {name: {} for name in configs}
    if job.rounds:
        runners.update({name: build_runner(configs[name], name) for name in others})
        functions = {}
        for name, runner in runners.items():
            functions[name, 'synchronised'] = partial(iterate, runner, batches, waits[name])
            if distributed:
                functions[name, 'not synchronised'] = partial(iterate, runner, batches, [], synchronise=False)
        for (name, label), seconds in alternating_rounds(functions, job.rounds, job.device).items():
            times[name][label] = [max(of_ranks) for of_ranks in zip(*all_gather_object(seconds))]
    waiting = {name: spread(seconds[-job.rounds :]).median for name, seconds in waits.items() if seconds}
    of_ranks = all_gather_object((waiting, peak.bytes))
    return dict(
        times=times,
        waits={name: None if 'random' in data else max(each[name] for each, _ in of_ranks) for name in waiting},
        gradient_bytes={
            name: sum(p.numel() * p.element_size() for p in runner.model.parameters() if p.requires_grad)
            for name, runner in runners.items()
        },
        peak_bytes=max(most for _, most in of_ranks),
        data=data,
    )


def make_batches(cfg: Config, model: nn.Module, job: Job) -> tuple[Iterator[dict], str]:
    """Batches without end, of the training data if it is there and no shape is asked for; and what they are."""
    scope, shape = package_of(cfg), job.shape
    if shape is None:
        try:
            loader = dict(copy.deepcopy(cfg.train_dataloader), batch_size=job.batch, drop_last=True)
            loader = Runner.build_dataloader(loader, seed=0)
        except FileNotFoundError:
            shape = RANDOM_SHAPES.get(scope, RANDOM_SHAPES['mmdet'])
        else:
            return endless(loader), f'{type_name(cfg.train_dataloader.dataset)}, {loader.num_workers} workers a process'
    samples = random_batch(scope, model, job.batch, (shape[0], shape[1]), channels=input_channels(cfg.model))
    return iter(lambda: copy.deepcopy(samples), None), f'random images of {shape[0]} × {shape[1]}'


def endless(loader: DataLoader) -> Iterator[dict]:
    """The batches of a loader, over and over."""
    if not len(loader):
        raise UsageError('the training data set gives no batch: it has fewer images than a batch. Lower --batch')
    while True:
        yield from loader


def make_measurable(cfg: Config, device: str) -> None:
    """Leaves the model, the optimizer and the training data of a config, without downloads."""
    without_downloads(cfg.model)
    without_worker_options(cfg)
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    for name in ('val', 'test'):
        for part in ('_dataloader', '_cfg', '_evaluator'):
            cfg[name + part] = None
    cfg.update(dict(load_from=None, resume=False, custom_hooks=None, log_level='ERROR', randomness=dict(seed=0)))
    cfg.pop('visualizer', None)
    cfg.optim_wrapper.pop('accumulative_counts', None)
    if device == 'cpu' and type_name(cfg.optim_wrapper) == 'AmpOptimWrapper':
        cfg.optim_wrapper.type = 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            cfg.optim_wrapper.pop(key, None)


def build_runner(cfg: Config, name: str) -> Runner:
    """A runner whose model is wrapped and has weights, and whose optimizer changes nothing."""
    cfg.experiment_name = name
    runner = Runner.from_cfg(cfg)
    runner._init_model_weights()
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    for group in runner.optim_wrapper.optimizer.param_groups:
        group['lr'] = 0.0
    runner.model.train()
    return runner


def iterate(runner: Runner, batches: Iterator[dict], waits: list[float], synchronise: bool = True) -> None:
    """A training iteration of all processes; adds how long it waited for its batch."""
    start = time.perf_counter()
    batch = next(batches)
    waits.append(time.perf_counter() - start)
    with nullcontext() if synchronise else runner.model.no_sync():
        runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)
    barrier()


def check_processes(args: argparse.Namespace) -> None:
    """Checks before anything is measured that every process gets a GPU and images.

    Raises:
        UsageError: If there are too few of them.
    """
    available = torch.cuda.device_count()
    for count in args.processes:
        if args.device == 'cuda' and count > available:
            raise UsageError(
                f'{count} processes need as many GPUs, and torch sees {available}: ask for fewer --processes, or '
                'measure on the CPU with --device cpu'
            )
        if args.strong and args.batch % count:
            raise UsageError(
                f'--strong divides a batch of {args.batch} among the processes, and {count} do not divide it: '
                f'set --batch to a multiple of {count}'
            )


def measure(args: argparse.Namespace, networks: tuple[str, ...], processes: int) -> tuple[list[dict], str]:
    """Measures one number of processes.

    Returns:
        tuple[list[dict], str]: A row for each network, whose lists are median, smallest and largest of the rounds; and
            what the data was.
    """
    batch = args.batch // processes if args.strong else args.batch
    threads = max(1, args.cores // processes)
    job = Job(args.config, args.cfg_options, args.device, batch, args.iterations, args.shape, networks)
    found = run_group(job, processes, threads, args.timeout)
    peaks = {networks[0]: found['peak_bytes']}
    for name in networks[1:]:  # a peak needs processes without another network's memory
        alone = run_group(job._replace(networks=(name,), rounds=0), processes, threads, args.timeout)
        peaks[name] = alone['peak_bytes']
    rows = []
    for name in networks:
        times = found['times'][name]
        seconds = spread(times['synchronised'])
        share = ratio = None
        if processes > 1:
            without = paired_ratios(times['not synchronised'], times['synchronised'])
            share = Spread(1 - without.median, 1 - without.high, 1 - without.low)
        if name == S6LA and PLAIN in networks:
            ratio = paired_ratios(times['synchronised'], found['times'][PLAIN]['synchronised'])
        rows.append(
            dict(
                network=name,
                processes=processes,
                threads=threads,
                batch_per_process=batch,
                images_per_second=batch * processes / seconds.median,
                seconds=seconds,
                data_seconds=found['waits'][name],
                communication_share=share,
                gradient_bytes=found['gradient_bytes'][name],
                peak_bytes=peaks[name],
                ratio_to_plain=ratio,
            )
        )
    return rows, found['data']


def add_efficiency(rows: list[dict], device: str) -> None:
    """Fills in images per second, and per GPU where each process has its own, relative to the network's first row.

    Example:
        >>> rows = [dict(network='S6LA', processes=n, images_per_second=speed) for n, speed in ((1, 8.0), (2, 12.0))]
        >>> add_efficiency(rows, 'cuda')
        >>> [row['efficiency'] for row in rows]
        [1.0, 0.75]
    """
    first: dict[str, float] = {}
    for row in rows:
        speed = row['images_per_second'] / (row['processes'] if device == 'cuda' else 1)
        row['efficiency'] = speed / first.setdefault(row['network'], speed)


def print_table(rows: list[dict], args: argparse.Namespace) -> None:
    """Prints what was measured, and how to read it."""
    print(f'medians of {args.iterations} alternating rounds, [min .. max]; times are those of the slowest process')
    print(
        f'{"":<8}{"processes":<10}{"threads":>8}{"images/s":>10}  {"s/iteration":<26}{"data wait":>10}  '
        f'{"exposed communication":<26}{"peak memory":>12}{"efficiency":>12}  S6LA / plain'
    )
    for row in rows:
        wait = '-' if row['data_seconds'] is None else f'{row["data_seconds"]:.3f} s'
        print(
            f'{row["network"]:<8}{row["processes"]:<10}{row["threads"]:>8}{row["images_per_second"]:>10.2f}  '
            f'{row["seconds"]!s:<26}{wait:>10}  {row["communication_share"] or "-"!s:<26}'
            f'{row["peak_bytes"] / 2**20:>8.0f} MiB{row["efficiency"]:>12.3f}  {row["ratio_to_plain"] or ""}'.rstrip()
        )
    print('Exposed communication: share of the iteration that is gone under no_sync(); what overlaps with the backward')
    print('pass is not in it.')
    if args.device == 'cuda':
        print('Efficiency: images/s and GPU, relative to the first row.')
    else:
        print(f'Efficiency: images/s relative to the first row. All rows share the {args.cores} cores, so 1 means that')
        print('nothing is lost; above 1, fewer processes do not keep the cores busy.')


def main() -> None:
    """Measures every number of processes and prints."""
    args = parse_args()
    with clear_errors():
        cfg = load_config(args.config, args.cfg_options)
        args.batch = args.batch or cfg.train_dataloader.batch_size
        networks, left_out = (S6LA,) if is_s6la(cfg) else (PLAIN,), []
        if args.baseline:
            networks, left_out = (S6LA, PLAIN), plain_config(cfg)[1]
        check_processes(args)
        rows = []
        for processes in args.processes:
            measured, data = measure(args, networks, processes)
            rows += measured
    add_efficiency(rows, args.device)
    device = describe_device(args.device, args.cores)
    images = 'images in all' if args.strong else 'images per process'
    print(f'{device}, torch {torch.__version__}; data: {data}; {args.batch} {images}')
    if left_out:
        print(f'the plain network has no {", ".join(left_out)}: it was left out, and the ratio includes that')
    print_table(rows, args)
    if args.json:
        about = dict(config=Path(args.config).name, torch=torch.__version__, device=device, data=data)
        about.update(left_out=left_out, scaling='strong' if args.strong else 'weak', cores=args.cores)
        print(json.dumps(dict(about, rows=rows)))


if __name__ == '__main__':
    main()
