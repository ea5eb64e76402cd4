"""tools/benchmarks/distributed.py, from its command line to what it prints."""

from __future__ import annotations

import json
import re

import pytest
from tool_runner import ROOT, call, check

pytestmark = pytest.mark.usefixtures('spawned_by_fork')
TOOL = 'benchmarks/distributed.py'
QUICKSTART = ROOT / 'configs/quickstart/retinanet_s6la-r18_shapes.py'
TINY = '--shape 64 64 --iterations 2 --batch 2 --cores 1 --device cpu --json'.split()


def test_two_processes_against_one():
    """A row for each count, and what is derived is derived from the same output."""
    output = check(call(TOOL, QUICKSTART, '--processes', 1, 2, *TINY))
    assert [line.split()[1] for line in output.splitlines() if line.startswith('S6LA ')] == ['1', '2']
    assert 'random images of 64 × 64' in output and 'All rows share the 1 cores' in output and 'no_sync()' in output
    result = json.loads(output.splitlines()[-1])
    assert (result['scaling'], result['cores']) == ('weak', 1)
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


def test_a_process_that_dies_ends_the_measurement(tmp_path, monkeypatch):
    (tmp_path / 'killer.py').write_text(
        "import os, signal\nif os.environ.get('RANK') == '1':\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = {str(QUICKSTART)!r}\ncustom_imports = dict(imports=['s6la_mm', 'killer'])\n")
    monkeypatch.setenv('PYTHONPATH', f'{ROOT}:{tmp_path}')
    monkeypatch.syspath_prepend(tmp_path)
    result = call(TOOL, config, '--processes', 2, *TINY, '--timeout', 120)
    assert result.returncode == 1 and result.stderr.startswith(
        'error: of 2 processes, process 1 terminated with signal SIGKILL: is there enough memory?'
    )


@pytest.mark.parametrize(
    'args, message',
    [
        ((QUICKSTART, '--processes', 0), '--processes, --batch, .* must be positive'),
        (
            (QUICKSTART, '--device', 'cuda', '--processes', 64),
            '64 processes need as many GPUs, and torch sees .*--device',
        ),
        ((QUICKSTART, '--device', 'cpu', '--strong', '--batch', 4, '--processes', 3), '--batch to a multiple of 3'),
        (('nowhere.py',), r"error: config 'nowhere.py' does not exist"),
    ],
)
def test_wrong_options_are_sentences(args, message):
    assert re.search(message, call(TOOL, *args).stderr)


def test_plain_network_of_a_plain_config(tmp_path):
    config = tmp_path / 'plain.py'
    config.write_text("model = dict(backbone=dict(type='ResNet', depth=50))\ntrain_dataloader = dict(batch_size=1)\n")
    assert "the backbone 'ResNet' is no S6LA backbone" in call(TOOL, config, '--baseline').stderr
