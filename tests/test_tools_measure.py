"""tools/get_flops.py and tools/benchmark_backbone.py, run as a user runs them."""

import re

import pytest
from tool_runner import ROOT, check, run


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


@pytest.mark.slow
def test_benchmark_backbone_prints_paired_ratios():
    options = ['--depth', 18, '--shape', 1, 3, 64, 64, '--rounds', 2, '--threads', 1, '--layout', 'contiguous']
    output = check(run('benchmark_backbone.py', *options, '--device', 'cpu'))
    assert 'contiguous' in output and '1 threads' in output
    for label in ('forward   ', 'forward + backward', 'peak memory'):
        (row,) = (line for line in output.splitlines() if line.startswith(label))
        plain, s6la, ratio = map(float, re.findall(r'[\d.]+', row[20:])[:3])
        # Two rounds of milliseconds: the median of the ratios is near the ratio of the medians, no more.
        assert ratio == pytest.approx(s6la / plain, rel=0.5)
