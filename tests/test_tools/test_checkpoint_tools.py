"""The command line tools of checkpoints: what they print, their exit status, and a disk that fills up."""

import json
import resource

import pytest
import torch
from checkpoint_sources import make_source
from tool_runner import call, check


@pytest.fixture
def resnet18(tmp_path):
    path = tmp_path / 'resnet18.pth'
    torch.save(make_source('torchvision ResNet-18')[1], path)
    return path


def test_convert_and_inspect(resnet18, tmp_path):
    out, report = tmp_path / 'out.pth', tmp_path / 'report.json'
    output = check(
        call(
            'model_converters/convert_checkpoint.py',
            resnet18,
            out,
            '--arch',
            's6la_r18',
            '--verify',
            '--report',
            report,
        )
    )
    lines = output.splitlines()
    row = next(line.split() for line in lines if line.startswith('layer1.0.conv1.weight'))
    assert row == ['layer1.0.conv1.weight', 'layer1.0.conv1.weight', '64x64x3x3', 'kept']
    assert any(line.startswith('kept') and '120 tensors' in line for line in lines)
    assert any(line.startswith('verified: largest relative difference') for line in lines)
    content = json.loads(report.read_text())
    assert content['counts'] == {'kept': 120, 'new': 33, 'left out': 2} and content['difference'] < 1e-5
    assert content['meta']['arch'] == 's6la_r18' and content['path'] == str(out)
    output = check(call('model_converters/inspect_checkpoint.py', out))
    assert 'fits: s6la_r18' in output and 'source_sha256' in output
    output = check(call('model_converters/inspect_checkpoint.py', resnet18, '--diff', out))
    assert '120 equal, 2 only in the first, 33 only in the second' in output
    assert json.loads(check(call('model_converters/inspect_checkpoint.py', out, '--json')).splitlines()[-1])[
        'architectures'
    ] == ['s6la_r18']


@pytest.mark.parametrize('tool', ['convert_checkpoint', 'inspect_checkpoint'])
def test_one_sentence_and_exit_status(tmp_path, tool):
    bad = tmp_path / 'bad.pth'
    bad.write_bytes(b'no checkpoint')
    rest = [tmp_path / 'out.pth', '--arch', 's6la_r18'] if tool.startswith('convert') else []
    result = call(f'model_converters/{tool}.py', bad, *rest)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith('error: ')][-1].endswith(')')
    assert [path.name for path in tmp_path.iterdir()] == ['bad.pth']


def test_full_disk(resnet18, tmp_path):
    """A limit of 20 MB on what may be written is what a full disk is to the process."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 * 2**20, limits[1]))
    try:
        result = call('model_converters/convert_checkpoint.py', resnet18, tmp_path / 'out.pth', '--arch', 's6la_r18')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert f'error: {tmp_path / "out.pth"} cannot be written: ' in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['resnet18.pth']
