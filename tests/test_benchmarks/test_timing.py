"""s6la_mm/benchmarks/timing.py: the order of rounds, paired ratios, and peaks that processes of their own measure."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
from tool_runner import load

from s6la_mm.benchmarks import timing as benchmark
from s6la_mm.benchmarks.timing import PeakMemory, alternating_rounds, paired_ratios, run_in_child, spread

MIB = 2**20


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is told to."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(benchmark, 'time', SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def test_rounds_alternate_and_keep_their_order(clock):
    calls = []

    def working(name, seconds):
        def function():
            calls.append(name)
            clock.seconds += seconds * (1 + calls.count(name))

        return function

    times = alternating_rounds({'a': working('a', 1.0), 'b': working('b', 10.0)}, rounds=3, device='cpu')
    assert ''.join(calls) == 'abab' + 'ab' + 'ba' + 'ab'
    # A call is the slower the later it comes, so this is the time of each round, the first two left out.
    assert times == {'a': [4.0, 5.0, 6.0], 'b': [40.0, 50.0, 60.0]}


def test_short_calls_are_repeated(clock):
    calls = {'short': 0, 'long': 0}

    def working(name, seconds):
        def function():
            calls[name] += 1
            clock.seconds += seconds

        return function

    functions = {'short': working('short', 1.0), 'long': working('long', 9.0)}
    times = alternating_rounds(functions, rounds=2, device='cpu', min_seconds=3.5)
    assert times == {'short': [1.0, 1.0], 'long': [9.0, 9.0]}
    assert calls == {'short': 2 + 2 * 4, 'long': 2 + 2}


def test_ratios_are_paired():
    # The ratio of the medians would be 1.
    assert paired_ratios([1.0, 4.0, 6.0], [2.0, 4.0, 1.0]) == (1.0, 0.5, 6.0)
    assert paired_ratios([3.0, 2.0, 9.0], [1.0, 3.0, 3.0]) == (3.0, 2 / 3, 3.0)
    assert spread([1.0, 2.0, 4.0]).scaled(10) == (20.0, 10.0, 40.0)
    with pytest.raises(ValueError, match='times has 2 rounds and base 1'):
        paired_ratios([1.0, 2.0], [1.0])


def memory_in_a_child() -> tuple[int, int]:
    """A peak of 64 MiB, of which 32 stay, after a higher one; and what stays of 64 MiB once freed memory is kept."""
    torch.ones(96 * MIB, dtype=torch.uint8)
    with PeakMemory('cpu') as peak:
        torch.ones(64 * MIB, dtype=torch.uint8)
        kept = torch.ones(32 * MIB, dtype=torch.uint8)
    assert kept.numel() and load('benchmarks/op.py').keep_freed_memory()
    before = benchmark._resident_bytes('VmRSS')
    torch.ones(64 * MIB, dtype=torch.uint8)
    return peak.bytes, benchmark._resident_bytes('VmRSS') - before


def test_memory_is_what_is_in_use():
    peak, still_resident = run_in_child(memory_in_a_child)
    # 2 MiB: pages that the interpreter touches on the way.
    assert peak == pytest.approx(64 * MIB, abs=2 * MIB)
    assert still_resident == pytest.approx(64 * MIB, abs=2 * MIB)


def test_child_reports_its_end():
    with pytest.raises(ValueError, match='math domain error'):
        run_in_child(benchmark.math.sqrt, -1.0)
    with pytest.raises(RuntimeError, match='the process of _exit died'):
        run_in_child(os._exit, 3)
    assert 'MALLOC_MMAP_THRESHOLD_' not in os.environ
