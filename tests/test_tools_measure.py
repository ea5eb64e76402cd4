"""tools/get_flops.py, tools/benchmark_backbone.py and tools/benchmark_op.py, run as a user runs them."""

import argparse
import importlib
import json
import re
import warnings
from itertools import product
from unittest import mock

import pytest
import torch
from tool_runner import ROOT, TOOLS, check, run

from s6la_mm.ops import extension, reference, selective_update
from s6la_mm.testing import sample_inputs


def test_get_flops_counts_every_part():
    config = ROOT / 'configs/mask_rcnn/mask-rcnn_s6la-r50_fpn_1x_coco.py'
    lines = check(run('get_flops.py', config, '--shape', 224)).splitlines()
    rows = {line[:16].strip(): line[16:].replace(' M', '').split() for line in lines}
    parts = {name: (float(rows[name][0]), float(rows[name][1])) for name in ('backbone', 'of it S6LA', 'whole model')}
    assert parts['backbone'][0] == pytest.approx(23.508 + 0.252, abs=1e-3)
    assert parts['of it S6LA'][0] == pytest.approx(0.252, abs=1e-3)
    # ResNet-50 without its classifier has 4.09 G multiply-adds at 224 × 224 (He et al.: 3.8 in the caffe style).
    assert parts['backbone'][1] - parts['of it S6LA'][1] == pytest.approx(4.09, abs=0.02)
    heads = sum(float(rows[name][1]) for name in ('backbone', 'neck', 'rpn_head', 'roi_head'))
    assert heads == pytest.approx(parts['whole model'][1], abs=0.05)


def test_get_flops_names_wrong_input():
    done = run('get_flops.py', 'configs/nothing.py')
    assert done.returncode == 1 and 'configs/nothing.py' in done.stderr and 'Traceback' not in done.stderr
    done = run('get_flops.py', 'configs/nothing.py', '--shape', 0)
    assert done.returncode == 2 and '--shape' in done.stderr


TINY = ['--depth', 18, '--shape', 1, 3, 64, 64, '--rounds', 2, '--threads', 1, '--device', 'cpu']


def numbers(line: str) -> list[float]:
    """The numbers of a table's row, after its label."""
    return [float(number) for number in re.findall(r'-?\d+(?:\.\d+)?', line[20:])]


@pytest.mark.slow
def test_benchmark_backbone_prints_paired_ratios():
    output = check(run('benchmark_backbone.py', *TINY, '--layout', 'contiguous'))
    assert 'contiguous' in output and '1 threads' in output
    assert ('NOT COMPILED' in output) == ('cpu' not in extension.compiled_devices())
    for label in ('forward, eval', 'forward + backward', 'peak memory'):
        (row,) = (line for line in output.splitlines() if line.startswith(label))
        plain, s6la, rla, *ratios = numbers(row)
        if label == 'peak memory':
            assert ratios == pytest.approx([s6la / plain, rla / plain, s6la / rla], rel=0.02)
        else:
            medians, lows, highs = ratios[::3], ratios[1::3], ratios[2::3]
            assert len(medians) == 3 and all(a <= b <= c for a, b, c in zip(lows, medians, highs))
            # The ratio of medians lies between the smallest and the largest of two ratios, but for the rounding.
            for ratio, low, high in zip([s6la / plain, rla / plain, s6la / rla], lows, highs):
                assert low * 0.9 < ratio < high * 1.1


@pytest.mark.slow
def test_benchmark_backbone_scales_without_the_op():
    options = ['--scaling', '--sizes', 64, 96, '--depths', 18, '--eager']
    output = check(run('benchmark_backbone.py', *TINY, *options))
    assert 'the PyTorch formula, because of --eager' in output
    assert '(1, 3, 64, 64)' in output and 'ms per megapixel' in output and 'ms per block' in output
    for label, units in (('64 x 64', 64**2 / 1e6), ('96 x 96', 96**2 / 1e6), ('ResNet-18', 8)):
        rows = [line for line in output.splitlines() if line.startswith(label)]
        assert [line[12:32].strip() for line in rows] == ['forward, eval', 'forward + backward']
        for row in rows:
            _, s6la, *_, per_unit, _ = numbers(row[12:])
            assert per_unit == pytest.approx(s6la / units, rel=0.01, abs=0.01)


def test_eager_option_avoids_the_op(monkeypatch):
    """What --eager patches is what the op asks, and nothing tells the user to build what is there."""
    monkeypatch.syspath_prepend(TOOLS)
    benchmark_backbone = importlib.import_module('benchmark_backbone')
    steps = []
    monkeypatch.setattr(reference, 'step', lambda h, *args, **kwargs: steps.append(h) or h)
    try:
        benchmark_backbone.set_up(argparse.Namespace(threads=torch.get_num_threads(), eager=True))
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            selective_update(**sample_inputs('map'))
    finally:
        mock.patch.stopall()
    assert len(steps) == 1


@pytest.mark.slow
def test_benchmark_op_counts_its_bytes(tmp_path):
    """The rows are there, and a rate is the bytes of one fused kernel over the time."""
    log = tmp_path / 'log.jsonl'
    options = ['--shape', 2, 8, 9, 11, '--layout', 'channels_last', '--dtype', 'bfloat16', '--json', log]
    options += ['--rounds', 2, '--threads', 1, '--device', 'cpu', '--copy-mib', 4]
    environment = dict(CXX='no-such-compiler', TORCHINDUCTOR_CACHE_DIR=str(tmp_path / 'cache'))
    output = check(run('benchmark_op.py', *options, **environment))
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
    monkeypatch.syspath_prepend(TOOLS)
    benchmark_op = importlib.import_module('benchmark_op')
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
