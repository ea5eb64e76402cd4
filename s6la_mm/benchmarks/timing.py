"""What the benchmarks share: timing in alternating rounds, paired ratios, and peak memory in a process of its own.

Machines drift; the ratio of two neighbouring runs does not. So everything that is compared runs in every round, and
what is reported is the median of the rounds' ratios, with their spread.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import torch

WARMUP_ROUNDS = 2
Name = TypeVar('Name', bound=Hashable)


class Spread(NamedTuple):
    """Median, smallest and largest of a list of numbers."""

    median: float
    low: float
    high: float

    def scaled(self, factor: float) -> Spread:
        """The same in another unit."""
        return Spread(*(value * factor for value in self))

    def __str__(self) -> str:
        return f'{self.median:.3f} [{self.low:.3f} .. {self.high:.3f}]'


def spread(values: Sequence[float]) -> Spread:
    """Summarises numbers.

    Example:
        >>> print(spread([3.0, 1.0, 2.0]))
        2.000 [1.000 .. 3.000]
    """
    return Spread(statistics.median(values), min(values), max(values))


def paired_ratios(times: Sequence[float], base: Sequence[float]) -> Spread:
    """Summarises the rounds' ratios ``times / base``.

    Args:
        times (Sequence[float]): One time for every round.
        base (Sequence[float]): What it is compared with, in the same rounds.

    Returns:
        Spread: Median, smallest and largest ratio.

    Raises:
        ValueError: If the two do not have the same number of rounds.

    Example:
        >>> print(paired_ratios([2.0, 6.0, 3.0], [1.0, 2.0, 2.0]))
        2.000 [1.500 .. 3.000]
    """
    if len(times) != len(base):
        raise ValueError(f'times has {len(times)} rounds and base {len(base)}: they must be of the same rounds')
    return spread([a / b for a, b in zip(times, base)])


def describe_device(device: str, threads: int | None = None) -> str:
    """What a table must say about where it was measured.

    Args:
        device (str): As PyTorch names it.
        threads (int, optional): CPU threads. Defaults to None: those of this process.

    Example:
        >>> describe_device('cpu').split(',')[0]
        'CPU'
    """
    if device.startswith('cuda'):
        tf32 = 'TF32' if torch.backends.cudnn.allow_tf32 else 'float32'
        return f'{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, float32 convolutions in {tf32}'
    threads = threads or torch.get_num_threads()
    return f'CPU, {threads} thread{"s" * (threads > 1)}, {torch.backends.cpu.get_cpu_capability()}'


def seconds_per_call(function: Callable[[], object], device: str, calls: int = 1) -> float:
    """Wall-clock seconds of one call, the device's work included, as the mean of ``calls`` calls in a row."""
    synchronize = partial(torch.cuda.synchronize, device) if device.startswith('cuda') else (lambda: None)
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize()
    return (time.perf_counter() - start) / calls


def alternating_rounds(
    functions: Mapping[Name, Callable[[], object]], rounds: int, device: str, min_seconds: float = 0.0
) -> dict[Name, list[float]]:
    """Times functions in turn, round after round, after two rounds that are not counted.

    Every round starts with another function, so that none of them always follows the same neighbour.

    Args:
        functions (Mapping[Hashable, Callable]): What is timed, by name.
        rounds (int): Rounds that are counted.
        device (str): Where the functions work: ``'cpu'`` or ``'cuda'``, with or without an index.
        min_seconds (float): Call a function so often in a round that it takes this long. Defaults to 0.0: once.

    Returns:
        dict[Hashable, list[float]]: Seconds of one call by name, one number for every round; position i is round i.

    Example:
        >>> times = alternating_rounds({'a': lambda: sum(range(100)), 'b': lambda: None}, rounds=3, device='cpu')
        >>> [len(times[name]) for name in ('a', 'b')]
        [3, 3]
    """
    names = list(functions)
    calls = dict.fromkeys(names, 1)
    for _ in range(WARMUP_ROUNDS):
        for name in names:
            calls[name] = math.ceil(min_seconds / seconds_per_call(functions[name], device)) or 1
    times: dict[Name, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds_per_call(functions[name], device, calls[name]))
    return times


class PeakMemory:
    """Measures how far memory in use rises above what it is at entry; for a process of its own (:func:`run_in_child`).

    On the CPU it is the resident size, from Linux's /proc, so that memory counts whoever allocates it; on CUDA it is
    what PyTorch's allocator hands out.

    Args:
        device (str): ``'cpu'`` or ``'cuda'``, with or without an index.

    Example:
        >>> with PeakMemory('cpu') as peak:
        ...     block = b'x' * (256 * 2**20)
        >>> peak.bytes > 128 * 2**20
        True
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.on_cpu = not device.startswith('cuda')
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        gc.collect()  # what is freed later would hide as much of the rise
        if self.on_cpu:
            with open('/proc/self/clear_refs', 'w') as file:
                file.write('5')  # proc(5): the peak resident size becomes the present one
            self._before = _resident_bytes('VmRSS')
        else:
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        return self

    def __exit__(self, *exc_info: object) -> None:
        peak = _resident_bytes('VmHWM') if self.on_cpu else torch.cuda.max_memory_allocated(self.device)
        self.bytes = peak - self._before


def _resident_bytes(field: str) -> int:
    """This process's ``VmRSS`` (resident memory now) or ``VmHWM`` (its peak)."""
    with open('/proc/self/status') as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024


def run_in_child(function: Callable[..., Any], *args: object) -> Any:
    """Runs a function in a new process, where memory starts from nothing and is given back when it is freed.

    Args:
        function (Callable): A function of a module; it and its arguments and result travel by pickle.
        *args (object): Its arguments.

    Returns:
        Any: What the function returns.

    Raises:
        RuntimeError: If the process dies, of a lack of memory for example.
        Exception: What the function raises.

    Example:
        >>> import math
        >>> run_in_child(math.sqrt, 9.0)
        3.0
    """
    # glibc keeps freed blocks below a threshold, which it raises as it sees larger ones; a fixed one turns that off.
    # Else a block that was freed before a measurement could serve again in it without being seen.
    with mock.patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_='131072'):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
            try:
                return pool.submit(function, *args).result()
            except BrokenProcessPool as error:
                raise RuntimeError(f'the process of {function.__name__} died: is there enough memory?') from error
