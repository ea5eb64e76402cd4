"""tools/benchmarks/distributed.py and tools/benchmarks/capacity_plan.py, from their command line to what they print."""

from __future__ import annotations

import importlib
import json
import re
import sys

import pytest
from tool_runner import ROOT, TOOLS

QUICKSTART = ROOT / 'configs/quickstart/retinanet_s6la-r18_shapes.py'
TINY = '--shape 64 64 --iterations 2 --batch 2 --cores 1 --device cpu --json'.split()


@pytest.mark.slow
def test_two_processes_against_one(monkeypatch, capsys):
    """A row for each count, and what is derived is derived from the same output."""
    monkeypatch.syspath_prepend(TOOLS)
    monkeypatch.setattr(sys, 'argv', ['benchmark_distributed', str(QUICKSTART), '--processes', '1', '2', *TINY])
    importlib.import_module('benchmark_distributed').main()
    output = capsys.readouterr().out
    assert [line.split()[1:4] for line in output.splitlines() if line.startswith('S6LA ')] == [
        ['1', 'x', '1'],
        ['1', 'x', '2'],
    ]
    assert 'random images of 64 × 64' in output and 'All rows share the 1 cores' in output and 'no_sync()' in output
    result = json.loads(output.splitlines()[-1])
    assert (result['backend'], result['scaling'], result['cores']) == ('gloo', 'weak', 1)
    one, two = result['rows']
    assert [row['processes'] for row in (one, two)] == [1, 2]
    for row in (one, two):
        median, low, high = row['seconds']
        assert 0 < low <= median <= high
        assert row['images_per_second'] == pytest.approx(2 * row['processes'] / median)
        assert row['efficiency'] == pytest.approx(row['images_per_second'] / one['images_per_second'])
        assert row['gradient_bytes'] == one['gradient_bytes'] < row['peak_bytes']
        assert row['data_seconds'] is None and row['ratio_to_plain'] is None
    assert one['communication_share'] is None
    median, low, high = two['communication_share']
    assert low <= median <= high < 1


@pytest.mark.slow
def test_a_process_that_dies_ends_the_measurement(call, tmp_path, monkeypatch):
    (tmp_path / 'killer.py').write_text(
        "import os, signal\nif os.environ.get('RANK') == '1':\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = {str(QUICKSTART)!r}\ncustom_imports = dict(imports=['s6la_mm', 'killer'])\n")
    monkeypatch.setenv('PYTHONPATH', f'{ROOT}:{tmp_path}')
    monkeypatch.syspath_prepend(tmp_path)
    message = call('benchmark_distributed', config, '--processes', 2, *TINY, '--timeout', 120)
    assert message.startswith('error: a process of 2 was killed by SIGKILL: is there enough memory?')


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a tool's main() in this process, where everything is imported already, and returns how it ended."""
    monkeypatch.syspath_prepend(TOOLS)

    def function(tool, *args):
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(tool).main()
        return f'{ended.value.code} {capsys.readouterr().err}'

    return function


@pytest.mark.parametrize(
    'args, message',
    [
        ((QUICKSTART, '--processes', 0), '--processes, --nodes, --batch, .* must be positive'),
        (
            (QUICKSTART, '--device', 'cuda', '--processes', 64),
            '64 processes need as many GPUs, and torch sees .*--device',
        ),
        ((QUICKSTART, '--device', 'cpu', '--strong', '--batch', 4, '--processes', 3), '--batch to a multiple of 3'),
        (('nowhere.py',), r"error: config 'nowhere.py' does not exist"),
    ],
)
def test_wrong_options_are_sentences(call, args, message):
    assert re.search(message, call('benchmark_distributed', *args))


def test_plain_network_of_a_plain_config(call, tmp_path):
    config = tmp_path / 'plain.py'
    config.write_text("model = dict(backbone=dict(type='ResNet', depth=50))\ntrain_dataloader = dict(batch_size=1)\n")
    assert "the backbone 'ResNet' is no S6LA backbone" in call('benchmark_distributed', config, '--baseline')


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


def test_plan_writes_its_tables(monkeypatch, capsys, measurements, tmp_path):
    monkeypatch.syspath_prepend(TOOLS)
    tool = importlib.import_module('capacity_plan')
    document = tmp_path / 'plan.md'
    document.write_text(f'before\n{tool.BEGIN}\nold\n{tool.END}\nafter\n')
    options = ['--measurements', str(measurements), '--write', str(document), '--gpus', '8', '16', '--latency', '0']
    for _ in range(2):
        monkeypatch.setattr(sys, 'argv', ['capacity_plan.py', *options])
        tool.main()
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


def test_efficiency_of_the_plan(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    tool = importlib.import_module('capacity_plan')
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


def test_plan_errors_are_sentences(call, measurements, tmp_path):
    given = ['--measurements', measurements]
    assert '12 GPUs do not fill nodes of 8' in call('capacity_plan', *given, '--gpus', 12)
    assert 'was not measured at --shape [64, 64]' in call('capacity_plan', *given, '--shape', 64, 64)
    assert "document 'nowhere.md' does not exist" in call('capacity_plan', *given, '--write', 'nowhere.md')
    unmarked = tmp_path / 'unmarked.md'
    unmarked.write_text('nothing')
    assert 'once each: the tables go between them' in call('capacity_plan', *given, '--write', unmarked)
    assert 'all options must be positive' in call('capacity_plan', '--gpus', 0)
