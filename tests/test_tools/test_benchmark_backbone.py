"""tools/benchmarks/backbone.py."""

from __future__ import annotations

import argparse
import re
import warnings
from unittest import mock

import pytest
import torch
from op_inputs import sample_inputs
from tool_runner import call, check, load
from torch import nn

from s6la_mm.ops import extension, reference, selective_update

pytestmark = pytest.mark.usefixtures('spawned_by_fork')
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


def test_benchmark_backbone_prints_paired_ratios():
    output = check(call('benchmarks/backbone.py', *TINY, '--layout', 'contiguous'))
    assert 'contiguous' in output and '1 thread,' in output
    assert ('NOT COMPILED' in output) == ('cpu' not in extension.compiled_devices())
    for label in ('forward, eval', 'forward + backward', 'peak memory'):
        (row,) = (line for line in output.splitlines() if line.startswith(label))
        plain, s6la, rla, *ratios = numbers(row)
        assert_ratios(label, ratios, [s6la / plain, rla / plain, s6la / rla])


def test_folded_norms():
    """Evaluation alone, of networks without norms."""
    tool, seen = load('benchmarks/backbone.py'), []
    args = argparse.Namespace(shape=(1, 3, 32, 32), layout=None, device='cpu', rounds=1, fuse_conv_bn=True)
    with mock.patch.object(tool, 'alternating_rounds', lambda steps, *args: seen.extend(steps.values())):
        assert list(tool.measure(('plain', 'S6LA', 'RLA'), 'r18', args)) == ['forward, eval']
    for step in seen:
        norms = [name for name, part in step.args[0].named_modules() if isinstance(part, nn.BatchNorm2d)]
        assert all(name.startswith('cells.') for name in norms)
    assert len(seen) == 3


def test_benchmark_backbone_of_a_transformer():
    """A table for every arch, at the shape and in the layout of its family; RLA is a ResNet."""
    output = check(call('benchmarks/backbone.py', '--arch', 'pvtv2-b0', 'deit-ti', *TINY[2:]))
    assert 'PVTv2-B0, (1, 3, 64, 64), contiguous' in output and 'DeiT-tiny, (1, 3, 64, 64)' in output
    assert 'RLA' not in output
    for label in ('forward, eval', 'forward + backward', 'peak memory'):
        rows = [numbers(line) for line in output.splitlines() if line.startswith(label)]
        assert len(rows) == 2
        for plain, s6la, *ratios in rows:
            assert_ratios(label, ratios, [s6la / plain])


def test_benchmark_backbone_builds_comparable_networks(monkeypatch):
    """Same options and input for base and S6LA, nothing dropped, and reads that read."""
    tool = load('benchmarks/backbone.py')
    for arch in ('r18', 'pvtv2-b0'):
        args = argparse.Namespace(shape=(1, 3, 32, 64), layout=None, device='cpu', dtype='float32')
        (plain, images), (s6la, same) = (tool.build(name, arch, args) for name in ('plain', 'S6LA'))
        assert torch.equal(images, same) and images.shape == (1, 3, 32, 64)
        assert images.is_contiguous() == (arch != 'r18')
        added = s6la.state_dict().keys() - plain.state_dict().keys()
        assert not plain.state_dict().keys() - s6la.state_dict().keys() and 'initial_state' in added
        assert all(s6la.state_dict()[key].ne(0).any() for key in added if 'read' in key)
        assert not any(getattr(module, 'drop_prob', 0) for module in [*plain.modules(), *s6la.modules()])
        tool.step(s6la, images, args, backward=True)
        assert all(p.grad is not None for p in s6la.parameters())
        assert s6la.initial_state.grad.abs().max() > 1e-6  # 1e-9 would be rounding
    assert list(tool.MODELS['r50'].networks) == ['plain', 'S6LA', 'RLA']
    assert list(tool.MODELS['x101-32x4d'].networks) == ['plain', 'S6LA']
    assert {'r50', 'deit-s', 'swin-t', 'pvtv2-b1'} < set(tool.MODELS)


def test_benchmark_backbone_scales_without_the_op():
    options = ['--scaling', '--sizes', 64, 96, '--eager']
    output = check(call('benchmarks/backbone.py', *TINY, *options))
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
    benchmark_backbone = load('benchmarks/backbone.py')
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
