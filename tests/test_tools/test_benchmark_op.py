"""tools/benchmarks/op.py."""

from __future__ import annotations

import json
from itertools import product

import pytest
from tool_runner import check, load, run

from s6la_mm.ops import extension


def test_benchmark_op_counts_its_bytes(tmp_path):
    """The rows are there, and a rate is the bytes of one fused kernel over the time."""
    log = tmp_path / 'log.jsonl'
    options = ['--shape', 2, 8, 9, 11, '--layout', 'channels_last', '--dtype', 'bfloat16', '--json', log]
    options += ['--rounds', 2, '--threads', 1, '--device', 'cpu', '--copy-mib', 4]
    environment = dict(CXX='no-such-compiler', TORCHINDUCTOR_CACHE_DIR=str(tmp_path / 'cache'))
    output = check(run('benchmarks/op.py', *options, **environment))
    assert 'skipped: ' in output and 'no-such-compiler' in output
    measured = ['op', 'eager'] if 'cpu' in extension.compiled_devices() else ['eager']
    assert ('NOT COMPILED' in output) == ('op' not in measured)
    rows = json.loads(log.read_text())['rows']
    assert [(row['passes'], row['what']) for row in rows] == list(product(PASSES, measured))
    state, vectors = 2 * (2 * 8 * 9 * 11), 4 * 2 * 8  # bfloat16 maps, float32 A and dt_bias
    check_rates(rows, {'forward': 5 * state + vectors, 'forward + backward': 14 * state + 3 * vectors})
    # All is a few kilobytes, of which nothing can be told apart from the interpreter's own.
    assert all(0 <= row['extra_bytes'] < 16 * 2**20 for row in rows)


def test_benchmark_op_measures_tokens(monkeypatch, capsys):
    benchmark_op = load('benchmarks/op.py')
    argv = 'benchmark_op.py --token 3 6 4 --against eager --rounds 2 --copy-mib 1 --device cpu'
    monkeypatch.setattr('sys.argv', argv.split())
    extra = dict.fromkeys(product(('op', 'eager'), (False, True)), 0)
    monkeypatch.setattr(benchmark_op, 'run_in_child', lambda function, *args: extra)
    rows = benchmark_op.measure(benchmark_op.parse_args(), 'token', 'float32')
    h, x, B, A = (4 * size for size in (3 * 6 * 4, 3 * 6, 3 * 4, 6 * 4))
    inputs = h + 2 * x + A + B + 4 * 6
    check_rates(rows, {'forward': inputs + h, 'forward + backward': 3 * inputs + 2 * h})
    assert 'token layout (3, 6, 4)' in capsys.readouterr().out


PASSES = ('forward', 'forward + backward')


def check_rates(rows: list, bytes_moved: dict) -> None:
    assert {row['passes'] for row in rows} == set(PASSES)
    for row in rows:
        assert row['gb_per_s'] * row['ms'][0] * 1e6 == pytest.approx(bytes_moved[row['passes']])
