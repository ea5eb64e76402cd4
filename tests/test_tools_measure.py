"""The tools that measure: get_flops.py, backbone.py and op.py, run as a user runs them."""

import argparse
import importlib
import json
import re
import warnings
from itertools import product
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from tool_runner import ROOT, TOOLS, check, run

from s6la_mm.ops import extension, reference, selective_update
from s6la_mm.testing import sample_inputs


def test_get_flops_counts_every_part():
    config = ROOT / 'configs/mask_rcnn/mask-rcnn_s6la-r50_fpn_1x_coco.py'
    lines = check(run('analysis_tools/get_flops.py', config, '--shape', 224)).splitlines()
    rows = {line[:16].strip(): line[16:].replace(' M', '').split() for line in lines}
    parts = {name: (float(rows[name][0]), float(rows[name][1])) for name in ('backbone', 'of it S6LA', 'whole model')}
    assert parts['backbone'][0] == pytest.approx(23.508 + 0.252, abs=1e-3)
    assert parts['of it S6LA'][0] == pytest.approx(0.252, abs=1e-3)
    # ResNet-50 without its classifier has 4.09 G multiply-adds at 224 × 224 (He et al.: 3.8 in the caffe style).
    assert parts['backbone'][1] - parts['of it S6LA'][1] == pytest.approx(4.09, abs=0.02)
    heads = sum(float(rows[name][1]) for name in ('backbone', 'neck', 'rpn_head', 'roi_head'))
    assert heads == pytest.approx(parts['whole model'][1], abs=0.05)


def test_get_flops_of_a_transformer(monkeypatch):
    """Plain network and S6LA add up to the backbone; attention, which the CPU fuses, is in both."""
    monkeypatch.syspath_prepend(TOOLS)
    get_flops = importlib.import_module('get_flops')
    arch = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)
    options = dict(arch=arch, img_size=64, with_cls_token=False, out_type='featmap', _scope_='mmpretrain')
    rows = {}
    for name, extra in (('VisionTransformer', {}), ('S6LAViT', dict(state_dim=4))):
        config = Config(dict(model=dict(type='ImageClassifier', backbone=dict(type=name, **options, **extra))))
        config.default_scope = 'mmpretrain'
        rows[name] = {row[0].strip(): row[1:] for row in get_flops.count(get_flops.build_model(config), 64, 48)}
    plain, backbone, state = (
        rows['VisionTransformer']['backbone'],
        rows['S6LAViT']['backbone'],
        rows['S6LAViT']['of it S6LA'],
    )
    assert [a + b for a, b in zip(plain, state)] == [*backbone]
    tokens = 12
    attention = 2 * tokens**2 * 32
    assert plain[1] == tokens * 3 * 16**2 * 32 + 3 * (tokens * (4 * 32**2 + 2 * 32 * 64) + attention)
    # Per block W_Δ and W_B of the summary token, and every token's read: W_C and the product with the state.
    update = 3 * (32 * 32 + 32 * 4 + 2 * tokens * 32 * 4)
    assert 0 <= state[1] - update <= 3 * 8 * 32 * 4


def test_get_flops_default_shape():
    """That of the config's scope."""
    output = check(run('analysis_tools/get_flops.py', ROOT / 'configs/imagenet/s6la-pvtv2-b0_8xb128_in1k.py'))
    assert 'one image of 224 × 224' in output


def test_get_flops_names_wrong_input():
    done = run('analysis_tools/get_flops.py', 'configs/nothing.py')
    assert done.returncode == 1 and 'configs/nothing.py' in done.stderr and 'Traceback' not in done.stderr
    done = run('analysis_tools/get_flops.py', 'configs/nothing.py', '--shape', 0)
    assert done.returncode == 2 and '--shape' in done.stderr


TINY = ['--arch', 'r18', '--shape', 1, 3, 64, 64, '--rounds', 2, '--threads', 1, '--device', 'cpu']


def numbers(line: str) -> list[float]:
    """The numbers of a table's row, after its label."""
    return [float(number) for number in re.findall(r'-?\d+(?:\.\d+)?', line[20:])]


def assert_ratios(label: str, ratios: list[float], expected: list[float]) -> None:
    """The ratios of a row, with their spread where they are times, are those of its networks."""
    if label == 'peak memory':
        assert ratios == pytest.approx(expected, rel=0.02)
        return
    medians, lows, highs = ratios[::3], ratios[1::3], ratios[2::3]
    assert len(medians) == len(expected) and all(a <= b <= c for a, b, c in zip(lows, medians, highs))
    # The ratio of medians lies between the smallest and the largest of two ratios, but for the rounding.
    for ratio, low, high in zip(expected, lows, highs):
        assert low * 0.9 < ratio < high * 1.1


@pytest.mark.slow
def test_benchmark_backbone_prints_paired_ratios():
    output = check(run('benchmarks/backbone.py', *TINY, '--layout', 'contiguous'))
    assert 'contiguous' in output and '1 thread,' in output
    assert ('NOT COMPILED' in output) == ('cpu' not in extension.compiled_devices())
    for label in ('forward, eval', 'forward + backward', 'peak memory'):
        (row,) = (line for line in output.splitlines() if line.startswith(label))
        plain, s6la, rla, *ratios = numbers(row)
        assert_ratios(label, ratios, [s6la / plain, rla / plain, s6la / rla])


@pytest.mark.slow
def test_benchmark_backbone_of_a_transformer():
    """A table for every arch, at the shape and in the layout of its family; RLA is a ResNet."""
    output = check(run('benchmarks/backbone.py', '--arch', 'pvtv2-b0', 'deit-ti', *TINY[2:]))
    assert 'PVTv2-B0, (1, 3, 64, 64), contiguous' in output and 'DeiT-tiny, (1, 3, 64, 64)' in output
    assert 'RLA' not in output
    for label in ('forward, eval', 'forward + backward', 'peak memory'):
        rows = [numbers(line) for line in output.splitlines() if line.startswith(label)]
        assert len(rows) == 2
        for plain, s6la, *ratios in rows:
            assert_ratios(label, ratios, [s6la / plain])


def test_benchmark_backbone_builds_comparable_networks(monkeypatch):
    """Same options and input for base and S6LA, nothing dropped, and reads that read."""
    monkeypatch.syspath_prepend(TOOLS)
    tool = importlib.import_module('benchmark_backbone')
    for arch in ('r18', 'pvtv2-b0'):
        args = argparse.Namespace(shape=(1, 3, 32, 64), layout=None, device='cpu', dtype='float32')
        family = tool.family_of(arch)
        (plain, images), (s6la, same) = (tool.build(name, arch, args) for name in ('plain', 'S6LA'))
        assert torch.equal(images, same) and images.shape == (1, 3, 32, 64)
        assert images.is_contiguous() == (family is tool.TRANSFORMERS)
        added = s6la.state_dict().keys() - plain.state_dict().keys()
        assert not plain.state_dict().keys() - s6la.state_dict().keys() and 'initial_state' in added
        assert all(s6la.state_dict()[key].ne(0).any() for key in added if 'read' in key)
        assert not any(getattr(module, 'drop_prob', 0) for module in [*plain.modules(), *s6la.modules()])
        tool.step(s6la, images, args, backward=True)
        assert all(p.grad is not None for p in s6la.parameters())
        assert s6la.initial_state.grad.abs().max() > 1e-6  # 1e-9 would be rounding
    assert tool.family_of('x101-32x4d').networks == ('plain', 'S6LA')
    assert {'r50', 'deit-s', 'swin-t', 'pvtv2-b1'} < set(tool.MODELS)


@pytest.mark.slow
def test_benchmark_backbone_scales_without_the_op():
    options = ['--scaling', '--sizes', 64, 96, '--eager']
    output = check(run('benchmarks/backbone.py', *TINY, *options))
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
