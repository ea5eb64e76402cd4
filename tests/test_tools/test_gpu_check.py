"""tools/gpu_check.sh: what it says where it cannot run, and its rehearsal on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'tools' / 'gpu_check.sh'


def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'} | variables
    return subprocess.run(['bash', SCRIPT, *map(str, arguments)], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ('arguments', 'variables', 'words'),
    [
        (('--kit', '/nowhere'), {}, '--kit: there is no such folder'),
        (('--kit', '/'), {}, '--kit: there are no wheels in /'),
        (('--out',), {}, '--out needs a folder'),
        (('--fast',), {}, 'unknown argument --fast; see --help'),
        ((), {'PYTHON': '/nowhere/python'}, 'there is no /nowhere/python. Run tools/setup_env.sh, or set PYTHON.'),
        ((), {'PYTHON': '/bin/false'}, ''),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, arguments, variables, words):
    result = run('--out', tmp_path, *arguments, **variables)
    assert result.returncode == 2
    assert result.stderr.startswith(f'gpu_check: error: {words}') and result.stderr.count('\n') == 1


def test_without_a_gpu_it_says_what_would_help(tmp_path):
    hidden = os.pathsep.join(f for f in os.environ['PATH'].split(os.pathsep) if not Path(f, 'nvidia-smi').exists())
    result = run('--out', tmp_path, PATH=hidden)
    assert result.returncode == 2
    assert 'there is no NVIDIA GPU here' in result.stderr and '--rehearse' in result.stderr
    assert 'torch' in (tmp_path / 'report.md').read_text(), 'the machine is described all the same'


def test_a_package_that_does_not_import_ends_it_before_the_first_step(tmp_path):
    (tmp_path / 'mmcv.py').write_text("raise ImportError('there is no six')")
    result = run('--rehearse', '--out', tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 2
    assert result.stderr.startswith('gpu_check: error: mmcv.ops does not import (there is no six). Install what is')


@pytest.mark.nightly
def test_rehearsal(tmp_path):
    result = run('--rehearse', '--out', tmp_path, S6LA_CHECK_SECONDS='1500')
    report = (tmp_path / 'report.md').read_text()
    assert result.returncode == 0, result.stdout + result.stderr + report
    titles = [line for line in report.splitlines() if line.startswith('## ')]
    assert sum(': passed in' in title for title in titles) >= 6, titles
    assert 'FAILED' not in report and '0 passed' not in report
