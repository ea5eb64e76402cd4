"""The CUDA kernels compiled for the CPU (tests/cuda_emulation): the tests of the op run on them in another process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_emulation import build
from cuda_emulation.mistakes import EVERY_TIME, MISTAKES

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(bool(build.missing()), reason=build.missing() or 'runs')
KERNEL_TESTS = sorted(map(str, Path(__file__).parent.glob('test_kernels*.py')))
# What starts other processes, which would load the real module, has no place here.
REAL_MODULE = 'not instruction_sets'


def run_on(module: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs pytest with the emulated module in place of the real one."""
    environment = os.environ | {
        **variables,
        'S6LA_EMULATION': str(module),
        'PYTHONPATH': os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        'CUDA_VISIBLE_DEVICES': '',
        'OMP_NUM_THREADS': '1',
    }
    command = [
        sys.executable,
        '-W',
        'ignore',
        '-m',
        'pytest',
        '-p',
        'no:cacheprovider',
        '-p',
        'cuda_emulation.plugin',
        '-q',
    ]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, cwd=TESTS.parent)


def passed(run: subprocess.CompletedProcess[str]) -> int:
    """How many tests passed; fails if one did not."""
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    return int(re.search(r'(\d+) passed', run.stdout)[1])


def test_kernels_pass_the_tests_of_the_op():
    """Without those that take half of the time: numbers that are not finite, and what is not the kernels' own."""
    chosen = f'{REAL_MODULE} and not finite and not bitwise and not copied and not opcheck and not public'
    assert passed(run_on(build.build(), *KERNEL_TESTS, '-k', chosen)) > 1300


@pytest.mark.nightly
@pytest.mark.parametrize('flavour', build.FLAVOURS)
def test_kernels_pass_all_tests_of_the_op(flavour, tmp_path):
    variables = build.environment(flavour, tmp_path / 'report')
    run = run_on(build.build(flavour), *KERNEL_TESTS, '-k', REAL_MODULE, **variables)
    reports = [path.read_text() for path in tmp_path.glob('report*')]
    assert not reports, reports[0][:6000]
    assert passed(run) > 1500


@pytest.mark.parametrize('name', MISTAKES)
def test_mistake_has_one_place_in_the_sources(name):
    assert (build.CSRC / 'cuda' / MISTAKES[name].file).read_text().count(MISTAKES[name].old) == 1


@pytest.mark.parametrize(
    'name',
    [pytest.param(n, marks=() if n in EVERY_TIME else pytest.mark.nightly) for n in MISTAKES],
)
def test_mistake_is_found(name, tmp_path):
    mistake = MISTAKES[name]
    file, selection = mistake.tests.split()
    variables = build.environment(mistake.flavour, tmp_path / 'report')
    run = run_on(mistake.module(tmp_path), str(Path(__file__).with_name(file)), '-x', '-k', selection, **variables)
    # 1: a test failed. A signal: the process ended where a GPU would report an error, or a sanitizer ended it.
    reported = bool(list(tmp_path.glob('report*')))
    assert run.returncode == 1 or run.returncode < 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert reported == (mistake.flavour == 'sanitized')
