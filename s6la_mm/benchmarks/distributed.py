"""Measures training in a group of processes on this machine, for tools/benchmarks/distributed.py.

S6LA and the plain network run in the same processes in alternating rounds, each with synchronised gradients and
without.
"""

from __future__ import annotations

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

from mmengine.config import Config
from mmengine.dist import all_gather_object, barrier
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes
from torch.utils.data import DataLoader

from ..common.cli import explain, load_config
from ..common.configs import is_s6la, plain_config, random_batch, without_downloads
from ..common.errors import UsageError
from ..engine.cpu import init_cpu_process_group
from .timing import PeakMemory, alternating_rounds, spread

S6LA, PLAIN = 'S6LA', 'plain'
# Height and width by scope, where the data set is not there.
RANDOM_SHAPES = dict(mmdet=(800, 1344), mmseg=(512, 512))


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
            group = start_processes(_run_process, (job, folder), processes, join=False, start_method='spawn')
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


def _run_process(rank: int, job: Job, folder: str) -> None:
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
    _make_measurable(cfg, job.device)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    init_cpu_process_group(cfg)
    configs = {name: copy.deepcopy(cfg) for name in job.networks}
    if PLAIN in configs and is_s6la(cfg):
        configs[PLAIN], _ = plain_config(cfg)
    first, *others = configs
    waits: dict[str, list[float]] = {name: [] for name in configs}
    with PeakMemory(job.device) as peak:
        runners = {first: _build(configs[first], first)}
        batches, data = _batches(cfg, runners[first].model, job)
        for _ in range(2):
            _iterate(runners[first], batches, waits[first])
    times: dict[str, dict[str, list[float]]] = {name: {} for name in configs}
    if job.rounds:
        runners.update({name: _build(configs[name], name) for name in others})
        functions = {}
        for name, runner in runners.items():
            functions[name, 'synchronised'] = partial(_iterate, runner, batches, waits[name])
            if distributed:
                functions[name, 'not synchronised'] = partial(_iterate, runner, batches, [], synchronise=False)
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


def _batches(cfg: Config, model: nn.Module, job: Job) -> tuple[Iterator[dict], str]:
    """Batches without end, of the training data if it is there and no shape is asked for; and what they are."""
    scope, shape = cfg.get('default_scope'), job.shape
    if shape is None:
        try:
            loader = dict(copy.deepcopy(cfg.train_dataloader), batch_size=job.batch, drop_last=True)
            loader = Runner.build_dataloader(loader, seed=0)
        except FileNotFoundError:
            shape = RANDOM_SHAPES.get(scope, RANDOM_SHAPES['mmdet'])
        else:
            return _endless(loader), f'{cfg.train_dataloader.dataset.type}, {loader.num_workers} workers per process'
    samples = random_batch(scope, model, job.batch, (shape[0], shape[1]))
    return iter(lambda: copy.deepcopy(samples), None), f'random images of {shape[0]} × {shape[1]}'


def _endless(loader: DataLoader) -> Iterator[dict]:
    if not len(loader):
        raise UsageError('the training data set gives no batch: it has fewer images than a batch. Lower --batch')
    while True:
        yield from loader


def _make_measurable(cfg: Config, device: str) -> None:
    """Leaves the model, the optimizer and the training data of a config, without downloads."""
    without_downloads(cfg.model)
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    for name in ('val', 'test'):
        for part in ('_dataloader', '_cfg', '_evaluator'):
            cfg[name + part] = None
    cfg.update(dict(load_from=None, resume=False, custom_hooks=None, log_level='ERROR', randomness=dict(seed=0)))
    cfg.pop('visualizer', None)
    cfg.optim_wrapper.pop('accumulative_counts', None)
    if device == 'cpu' and cfg.optim_wrapper.get('type') == 'AmpOptimWrapper':
        cfg.optim_wrapper.type = 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            cfg.optim_wrapper.pop(key, None)


def _build(cfg: Config, name: str) -> Runner:
    """A runner whose model is wrapped and has weights, and whose optimizer changes nothing."""
    cfg.experiment_name = name
    runner = Runner.from_cfg(cfg)
    runner._init_model_weights()
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    for group in runner.optim_wrapper.optimizer.param_groups:
        group['lr'] = 0.0
    runner.model.train()
    return runner


def _iterate(runner: Runner, batches: Iterator[dict], waits: list[float], synchronise: bool = True) -> None:
    start = time.perf_counter()
    batch = next(batches)
    waits.append(time.perf_counter() - start)
    with nullcontext() if synchronise else runner.model.no_sync():
        runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)
    barrier()
