"""tools/benchmarks/capacity_plan.py."""

from __future__ import annotations

import json

import pytest
from tool_runner import ROOT, call, check, load

TOOL = 'benchmarks/capacity_plan.py'


def count(size: int) -> dict:
    """Made-up counts of a network."""
    mb = 10**6
    return dict(
        parameters=size * mb,
        buffers=0,
        gradients=size * mb,
        optimizer=size * mb,
        activations=10 * size * mb,
        flops=800 * 10**9,
        largest_unit=mb,
        sync_bn_channels=0,
    )


@pytest.fixture
def measurements(tmp_path):
    """A file as the tool writes it."""
    check_of_one = dict(measured=1.0, extrapolated=1.0, two_images=2.0)
    networks = {'plain': count(100), 'S6LA': count(110), 'S6LA, with_cp': count(110)}
    of_depth = dict(shape=[800, 1344], checks=dict(activations=check_of_one, flops=check_of_one), **networks)
    path = tmp_path / 'measurements.json'
    path.write_text(json.dumps({'50': of_depth}))
    return path


def test_plan_writes_its_tables(measurements, tmp_path):
    tool = load(TOOL)
    document = tmp_path / 'plan.md'
    document.write_text(f'before\n{tool.BEGIN}\nold\n{tool.END}\nafter\n')
    options = ['--measurements', str(measurements), '--write', str(document), '--gpus', '8', '16', '--latency', '0']
    for _ in range(2):
        check(call(TOOL, *options))
    text = document.read_text()
    assert text.startswith('before\n') and text.endswith('after\n') and 'old' not in text
    assert text.count(tool.BEGIN) == 1 and text.count('### Measured') == 1
    assert '| R50, added by S6LA | +10.0% | +10.0% | +10.0% | +10.0% | +0.0% |' in text
    rows = [line.strip('| ').split(' | ') for line in text.splitlines() if line.startswith('| R50, 16 |')]
    # 15 / 16 of 2 × 110 MB; 10 of them for S6LA. 7 / 8 inside at 400 GB/s, half of an eighth at 50 and 25 GB/s.
    assert rows[0][5:] == ['206.2 MB', '309.4 MB', '18.8 MB']
    inside, between = 2 * 7 / 8 * 110 / 400, 2 * 1 / 2 * 110 / 8
    assert rows[1][1:3] == [f'{inside + between / inter:.2f} ms' for inter in (50, 25)]
    assert rows[1][8:] == ['32', '0.04', str(12 * 117266 // 32)]


def test_efficiency_of_the_plan():
    tool = load(TOOL)
    m = tool.of_batch(count(100), 2)
    cluster = tool.Cluster(gpus_per_node=8, intra=1e9, inter=1e9, latency=0.0, flops=16e12)  # 0.1 s to compute
    hidden = 2 / 3 * 0.1
    sent = 2 * 7 / 8 * 0.1  # 175 MB at 1 GB/s, more than the backward pass hides
    assert tool.efficiency(m, 8, cluster) == pytest.approx(0.1 / (0.1 + sent - hidden))
    assert tool.efficiency(m, 8, cluster, size=0.5) == pytest.approx(0.1 / (0.1 + sent / 2 - hidden))
    assert tool.efficiency(m, 8, cluster, accumulation=4) == pytest.approx(0.4 / (0.4 + sent - hidden))
    assert tool.efficiency(m, 1, cluster) == 1


def test_document_is_up_to_date_with_its_measurements():
    """The ratio of the document's own numbers is the share that it states."""
    lines = (ROOT / 'docs/capacity.md').read_text(encoding='utf-8').splitlines()
    for depth in (50, 101):
        rows = {}
        for name in ('plain', 'S6LA', 'added by S6LA'):
            start = f'| R{depth}, {name} |' if name == 'added by S6LA' else f'| R{depth} {name} |'
            (line,) = (line for line in lines if line.startswith(start))
            rows[name] = [float(cell.split()[0].strip('+%')) for cell in line.strip('| ').split(' | ')[1:]]
        for plain, s6la, share in zip(rows['plain'], rows['S6LA'], rows['added by S6LA']):
            assert 100 * (s6la / plain - 1) == pytest.approx(share, abs=0.5)


def test_plan_errors_are_sentences(measurements, tmp_path):
    given = ['--measurements', measurements]
    assert '12 GPUs do not fill nodes of 8' in call(TOOL, *given, '--gpus', 12).stderr
    assert 'was not measured at --shape [64, 64]' in call(TOOL, *given, '--shape', 64, 64).stderr
    assert "document 'nowhere.md' does not exist" in call(TOOL, *given, '--write', 'nowhere.md').stderr
    unmarked = tmp_path / 'unmarked.md'
    unmarked.write_text('nothing')
    assert 'once each: the tables go between them' in call(TOOL, *given, '--write', unmarked).stderr
    assert 'all options must be positive' in call(TOOL, '--gpus', 0).stderr
