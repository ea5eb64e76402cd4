"""Measures training over several processes, for tools/benchmarks/distributed.py, and is the process that it starts.

Every process group is one launch of ``torch.distributed.run``, as in tools/dist_train.sh, of this module. S6LA and the
plain network run in the same processes in alternating rounds, each with and without synchronised gradients.
"""

from __future__ import annotations

import copy
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import all_gather_object, barrier
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from ..common.cli import explain, load_config
from ..common.configs import is_s6la, plain_config, random_batch, without_downloads
from ..common.errors import UsageError
from ..engine.cpu import init_cpu_process_group
from .timing import PeakMemory, alternating_rounds, describe_device, paired_ratios, spread

S6LA, PLAIN = 'S6LA', 'plain'
# Height and width by scope, where the data set is not there.
RANDOM_SHAPES = dict(mmdet=(800, 1344), mmseg=(512, 512))


class Settings(NamedTuple):
    """What every launch of a measurement has in common.

    Attributes:
        config (str): Config file.
        cfg_options (dict): Overrides of it.
        device (str): ``'cpu'`` or ``'cuda'``.
        batch (int): Images per process, or in all if ``strong``.
        strong (bool): Divide the batch among the processes.
        iterations (int): Rounds that are counted.
        shape (tuple[int, int], optional): Height and width of random images; None: the config's data set.
        networks (tuple[str]): ``'S6LA'``, ``'plain'`` or both.
        cores (int): CPU cores, which the processes share.
        timeout (float): Seconds after which a launch is stopped.
    """

    config: str
    cfg_options: dict | None
    device: str
    batch: int
    strong: bool = False
    iterations: int = 10
    shape: tuple[int, int] | None = None
    networks: tuple[str, ...] = (S6LA,)
    cores: int = 1
    timeout: float = 1800.0

    def batch_per_process(self, world_size: int) -> int:
        """Images of one process.

        Raises:
            UsageError: If the total batch cannot be divided.
        """
        if not self.strong:
            return self.batch
        if self.batch % world_size:
            raise UsageError(
                f'--strong divides a batch of {self.batch} among the processes, and {world_size} do not divide it: '
                f'set --batch to a multiple of {world_size}'
            )
        return self.batch // world_size


class Row(NamedTuple):
    """One network at one number of processes. Lists are median, smallest and largest of the rounds.

    Attributes:
        threads (int): CPU threads of a process.
        units (int): What the throughput is divided by for the efficiency: GPUs, or the cores of the machine.
        data_seconds (float, optional): Wait for data of the slowest process; None for random images.
        communication_share (list[float], optional): Share of the iteration that is gone without synchronisation.
        peak_bytes (int): Of the process that needs most, above what it has before the model is built.
        efficiency (float): Images per second and unit, relative to the first row of the network.
        ratio_to_plain (list[float], optional): Seconds relative to the plain network in the same round.
    """

    network: str
    nodes: int
    processes: int
    threads: int
    batch_per_process: int
    units: int
    images_per_second: float
    seconds: list[float]
    data_seconds: float | None
    communication_share: list[float] | None
    gradient_bytes: int
    peak_bytes: int
    efficiency: float = 1.0
    ratio_to_plain: list[float] | None = None


def measure(settings: Settings, nodes: int, processes: int) -> tuple[list[Row], dict]:
    """Measures one process group.

    Args:
        settings (Settings): What is measured.
        nodes (int): Groups of processes, each with a node rank; all on this machine, over the loopback address.
        processes (int): Processes per node.

    Returns:
        tuple[list[Row], dict]: A row for each network; and what the processes say about themselves.

    Raises:
        UsageError: If the processes stop with an error, die or take too long.
    """
    world_size = nodes * processes
    threads = max(1, settings.cores // world_size)
    batch = settings.batch_per_process(world_size)
    job = dict(settings._asdict(), batch=batch)
    result = launch(job, nodes, processes, threads, settings.timeout)
    first, *others = settings.networks
    peaks = {first: result['peak_bytes']}
    for name in others:  # a peak needs a process without another network's memory
        alone = launch(dict(job, networks=[name], iterations=0), nodes, processes, threads, settings.timeout)
        peaks[name] = alone['peak_bytes']
    rows = []
    for name in settings.networks:
        times = result['times'][name]
        seconds = spread(times['synchronised'])
        share = ratio = None
        if world_size > 1:
            without = paired_ratios(times['not synchronised'], times['synchronised'])
            share = [1 - without.median, 1 - without.high, 1 - without.low]
        if name == S6LA and PLAIN in others:
            ratio = [*paired_ratios(times['synchronised'], result['times'][PLAIN]['synchronised'])]
        rows.append(
            Row(
                *(name, nodes, processes, threads, batch),
                units=world_size if settings.device == 'cuda' else settings.cores,
                images_per_second=batch * world_size / seconds.median,
                seconds=[*seconds],
                data_seconds=result['waits'][name],
                communication_share=share,
                gradient_bytes=result['gradient_bytes'][name],
                peak_bytes=peaks[name],
                ratio_to_plain=ratio,
            )
        )
    return rows, result['about']


def launch(job: dict, nodes: int, processes: int, threads: int, timeout: float) -> dict:
    """Starts the processes of a job, waits for them and returns the result of the first.

    One ``torch.distributed.run`` per node. None of the processes outlives the call.

    Raises:
        UsageError: If one of them stops with an error or dies, or after ``timeout`` seconds.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / 'job.json').write_text(json.dumps(dict(job, folder=name)))
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port = probe.getsockname()[1]  # a free one
        agents = [_start_node(folder, node, nodes, processes, port, threads, job['device']) for node in range(nodes)]
        try:
            end = time.monotonic() + timeout
            while any(agent.poll() is None for agent in agents) and time.monotonic() < end:
                if any(agent.poll() for agent in agents):
                    break  # the other nodes would wait for it
                time.sleep(0.1)
            late = all(agent.poll() in (None, 0) for agent in agents) and any(agent.poll() is None for agent in agents)
        finally:
            _stop(agents)
        if late:
            raise UsageError(
                f'{nodes * processes} processes were not done after {timeout:.0f} s and have been stopped: raise '
                '--timeout, or lower --iterations, --batch or --shape'
            )
        if any(agent.returncode for agent in agents):
            raise UsageError(_what_went_wrong(folder, nodes * processes))
        return json.loads((folder / 'result.json').read_text())


def _start_node(
    folder: Path, node: int, nodes: int, processes: int, port: int, threads: int, device: str
) -> subprocess.Popen:
    visible = ''
    if device == 'cuda':  # on this one machine the nodes take GPUs beside each other
        all_visible = os.environ.get('CUDA_VISIBLE_DEVICES') or ','.join(map(str, range(torch.cuda.device_count())))
        visible = ','.join(all_visible.split(',')[node * processes : (node + 1) * processes])
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    environment['CUDA_VISIBLE_DEVICES'] = visible
    if 'lo' in (name for _, name in socket.if_nameindex()):  # the host's name need not resolve to an address
        environment.update(GLOO_SOCKET_IFNAME='lo', NCCL_SOCKET_IFNAME='lo')
    rendezvous = [f'--nnodes={nodes}', f'--node_rank={node}', '--master_addr=127.0.0.1', f'--master_port={port}']
    command = [sys.executable, '-m', 'torch.distributed.run', *rendezvous, f'--nproc_per_node={processes}']
    with open(folder / f'node-{node}.log', 'w') as log:
        return subprocess.Popen(
            [*command, '-m', __spec__.name if __spec__ else __name__, str(folder / 'job.json')],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=partial(_die_with_parent, signal.SIGTERM),
        )


def _die_with_parent(number: int) -> None:
    """Lets the kernel send a signal to this process when its parent is gone; on Linux."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'prctl'):
        libc.prctl(1, int(number))  # PR_SET_PDEATHSIG


def _stop(agents: Sequence[subprocess.Popen]) -> None:
    """Ends the agents; they end their workers, and a worker ends with its agent."""
    for agent in agents:
        if agent.poll() is None:
            agent.terminate()
    for agent in agents:
        try:
            agent.wait(10)
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()


def _what_went_wrong(folder: Path, world_size: int) -> str:
    """The first error that a process wrote down; of one that died without, how."""
    errors = sorted(folder.glob('error-*.txt'), key=lambda path: path.stat().st_mtime_ns)
    log = '\n'.join(path.read_text(errors='replace') for path in sorted(folder.glob('node-*.log')))
    # torch.distributed.run's report ends with the root cause. A peer that notices the death writes an error too.
    codes = re.findall(r'exitcode\s*:\s*(-?\d+)', log)
    killed = next((int(code) for code in codes if int(code) < 0 and int(code) != -signal.SIGTERM), None)
    if killed is not None:
        reason = signal.Signals(-killed).name
        return f'a process of {world_size} was killed by {reason}: is there enough memory? Lower --batch or --processes'
    if errors:
        rank = errors[0].stem.partition('-')[2]
        return f'process {rank} of {world_size} stopped: {errors[0].read_text()}'
    tail = '\n'.join(log.strip().splitlines()[-20:])
    code = codes[-1] if codes else 'unknown'
    return f'a process of {world_size} ended with exit code {code}; the end of its output:\n{tail}'


def work(job: dict) -> dict:
    """What each process does: builds the networks and times their iterations.

    The learning rate is zero: the optimizer does its work, and all rounds time the same network, though gradients were
    not synchronised in some. All processes wait for each other at the end of an iteration, so that it lasts as long as
    that of the slowest.

    Args:
        job (dict): The :class:`Settings` with ``networks`` and ``folder``.

    Returns:
        dict: ``times`` and ``waits`` by network, ``peak_bytes`` of the first network, and more.
    """
    distributed = int(os.environ.get('WORLD_SIZE', 1)) > 1
    cfg = load_config(job['config'], job['cfg_options'], job['folder'], 'pytorch' if distributed else 'none')
    _make_measurable(cfg, job['device'])
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    init_cpu_process_group(cfg)
    configs, left_out = {name: copy.deepcopy(cfg) for name in job['networks']}, []
    if PLAIN in configs and is_s6la(cfg):
        configs[PLAIN], left_out = plain_config(cfg)
    first, *others = configs
    device, rounds = job['device'], job['iterations']
    waits: dict[str, list[float]] = {name: [] for name in configs}
    with PeakMemory(device) as peak:
        runners = {first: _build(configs[first], first)}
        batches, data = _batches(cfg, runners[first].model, job['batch'], job['shape'])
        for _ in range(2):
            _iterate(runners[first], batches, waits[first], True)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in configs}
    if rounds:
        runners.update({name: _build(configs[name], name) for name in others})
        functions = {}
        for name, runner in runners.items():
            functions[name, 'synchronised'] = partial(_iterate, runner, batches, waits[name], True)
            if distributed:
                functions[name, 'not synchronised'] = partial(_iterate, runner, batches, [], False)
        for (name, label), seconds in alternating_rounds(functions, rounds, device).items():
            times[name][label] = [max(of_ranks) for of_ranks in zip(*all_gather_object(seconds))]
    waiting = {name: spread(values[-rounds:]).median if rounds else 0.0 for name, values in waits.items()}
    of_ranks = all_gather_object((waiting, peak.bytes))
    return dict(
        times=times,
        waits={name: None if 'random' in data else max(each[name] for each, _ in of_ranks) for name in configs},
        peak_bytes=max(most for _, most in of_ranks),
        gradient_bytes={
            name: sum(p.numel() * p.element_size() for p in runner.model.parameters() if p.requires_grad)
            for name, runner in runners.items()
        },
        about=dict(
            device=re.sub(r' \d+ threads?,', '', describe_device(device)),  # rows have their own
            data=data,
            backend=dist.get_backend() if distributed else None,
            left_out=left_out,
        ),
    )


def _batches(cfg: Config, model, batch: int, shape: Sequence[int] | None) -> tuple[Iterator[dict], str]:
    """Batches without end, of the training data if it is there and no shape is asked for; and what they are."""
    scope = cfg.get('default_scope')
    if shape is None:
        try:
            loader = dict(copy.deepcopy(cfg.train_dataloader), batch_size=batch, drop_last=True)
            loader = Runner.build_dataloader(loader, seed=0)
        except FileNotFoundError:
            shape = RANDOM_SHAPES.get(scope, RANDOM_SHAPES['mmdet'])
        else:
            return _endless(loader), f'{cfg.train_dataloader.dataset.type}, {loader.num_workers} workers per process'
    samples = random_batch(scope, model, batch, tuple(shape))
    return iter(lambda: copy.deepcopy(samples), None), f'random images of {shape[0]} × {shape[1]}'


def _endless(loader) -> Iterator[dict]:
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


def _iterate(runner: Runner, batches: Iterator[dict], waits: list[float], synchronise: bool) -> None:
    start = time.perf_counter()
    batch = next(batches)
    waits.append(time.perf_counter() - start)
    with nullcontext() if synchronise else runner.model.no_sync():
        runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)
    barrier()


def main() -> None:
    """The process that ``launch`` starts: ``python -m s6la_mm.benchmarks.distributed JOB.json``."""
    _die_with_parent(signal.SIGKILL)
    job = json.loads(Path(sys.argv[1]).read_text())
    folder, rank = Path(job['folder']), os.environ['RANK']
    try:
        result = work(job)
    except Exception as error:
        text = explain(error) or f'{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ""}'
        (folder / f'error-{rank}.txt').write_text(text)
        raise
    if rank == '0':
        (folder / 'result.json').write_text(json.dumps(result))


if __name__ == '__main__':
    main()
