"""When tools/setup_env.sh compiles the op anew: on a copy of it, in an environment whose python only takes notes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = """#!/bin/sh
case "$*" in
    *find_spec*) echo "$CLONE/s6la_mm/__init__.py" ;;
    'setup.py build_ext --inplace')
        echo "ops=$S6LA_WITH_OPS cuda=$S6LA_WITH_CUDA" >>"$CLONE/builds"
        echo 's6la_mm: compiling the op for the CPU'
        [ ! -e "$CLONE/broken" ] || { echo 's6la_mm: error: no compiler' >&2; exit 1; }
        touch "$CLONE/s6la_mm/_ext.so" ;;
    *extension*) [ ! -e "$CLONE/unloadable" ] || { echo 'undefined symbol' >&2; exit 1; } ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of a few files and its complete environment, in .venv."""
    clone = tmp_path / 'clone'
    for folder in ('tools', 'requirements', 's6la_mm/ops/csrc', 'build/temp.linux'):
        (clone / folder).mkdir(parents=True)
    shutil.copy(ROOT / 'tools' / 'setup_env.sh', clone / 'tools')
    for name in ('setup.py', 'build_ops.py', 'requirements/pinned.txt', 'requirements/mmcv.txt'):
        (clone / name).write_text(name)
    (clone / 's6la_mm/ops/csrc/scan.cpp').write_text('int main() {}')
    packages = clone / '.venv/lib/python3.11/site-packages'
    for package in ('torch-2.13.0', 'mmcv-2.1.0'):
        (packages / f'{package}.dist-info').mkdir(parents=True)
    python = clone / '.venv/bin/python'
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(0o755)
    requirements = 'requirements/pinned.txt', 'requirements/mmcv.txt'
    complete = subprocess.run(
        ['cksum'], input=b''.join((clone / name).read_bytes() for name in requirements), capture_output=True, check=True
    )
    (clone / '.venv/s6la_stamp').write_bytes(complete.stdout)
    return clone


def set_up(clone: Path, *arguments: str, script: str = 'setup_env.sh', **env: str) -> subprocess.CompletedProcess:
    names = ('S6LA_WITH_OPS', 'S6LA_WITH_CUDA', 'FORCE_CUDA', 'TORCH_CUDA_ARCH_LIST', 'CUDA_HOME', 'S6LA_VENV')
    clean = {key: value for key, value in os.environ.items() if key not in names}
    env = {**clean, 'CLONE': str(clone), 'CUDA_VISIBLE_DEVICES': '', **env}
    return subprocess.run(
        ['bash', str(clone / 'tools' / script), *arguments], env=env, capture_output=True, text=True, check=False
    )


def builds(clone: Path) -> list[str]:
    return (clone / 'builds').read_text().splitlines() if (clone / 'builds').exists() else []


def test_op_is_compiled_once(clone):
    first, second = set_up(clone), set_up(clone)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert 's6la_mm: compiling the op for the CPU' in first.stdout
    assert builds(clone) == ['ops=1 cuda=0'] and 'compiling' not in second.stdout


@pytest.mark.parametrize(
    ('change', 'objects_stay'),
    [
        (lambda clone: (clone / 's6la_mm/ops/csrc/scan.cpp').write_text('int main() { return 1; }'), True),
        (lambda clone: (clone / 's6la_mm/ops/csrc/new.h').write_text('#pragma once'), True),
        (lambda clone: (clone / 'build_ops.py').write_text('other flags'), True),
        (lambda clone: (clone / 's6la_mm/_ext.so').unlink(), True),
        (lambda clone: rename_torch(clone), False),
    ],
    ids=['source', 'new header', 'build script', 'so removed', 'other torch'],
)
def test_op_is_compiled_again_after_a_change(clone, change, objects_stay):
    set_up(clone)
    (clone / 'build/temp.linux').mkdir(exist_ok=True)
    change(clone)
    assert set_up(clone).returncode == 0
    assert len(builds(clone)) == 2
    assert (clone / 'build/temp.linux').exists() == objects_stay, 'objects of another torch must go, others are reused'


def rename_torch(clone: Path) -> None:
    packages = clone / '.venv/lib/python3.11/site-packages'
    (packages / 'torch-2.13.0.dist-info').rename(packages / 'torch-2.13.1.dist-info')


def test_variables_reach_the_build(clone):
    set_up(clone, S6LA_WITH_OPS='0')
    assert builds(clone) == []
    set_up(clone, S6LA_WITH_CUDA='1')
    set_up(clone, FORCE_CUDA='1')
    assert builds(clone) == ['ops=1 cuda=1', 'ops=1 cuda=']


@pytest.mark.parametrize(
    ('flaw', 'words'),
    [
        ('broken', ['s6la_mm: error: no compiler', 'compiling the op failed', 'S6LA_WITH_OPS=0']),
        ('unloadable', ['undefined symbol', 'does not load']),
    ],
)
def test_failure_is_told_and_not_forgotten(clone, flaw, words):
    (clone / flaw).touch()
    for _ in range(2):
        result = set_up(clone)
        assert result.returncode == 1
        for word in words:
            assert word in result.stderr
    assert len(builds(clone)) == 2, 'the second run tries again'


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [((), []), (('--all',), ['-m', '']), (('-k', 'a or b', '--all', '-x'), ['-m', '', '-k', 'a or b', '-x'])],
)
def test_tiers(clone, arguments, expected):
    """The tests run in the environment, with --all those marked nightly too."""
    shutil.copy(ROOT / 'tools/run_tests.sh', clone / 'tools')
    python = clone / '.venv/bin/python'
    python.write_text(PYTHON.replace('esac', '    "-m pytest"*) printf "%s\\n" "$@" >"$CLONE/arguments" ;;\nesac'))
    set_up(clone, *arguments, script='run_tests.sh')
    start = ['-m', 'pytest', '-n', 'auto', '--maxprocesses', '8', '--dist', 'worksteal']
    assert (clone / 'arguments').read_text().splitlines() == start + expected


def test_unknown_tier():
    done = subprocess.run(['bash', ROOT / '.ci/run', '--nightly'], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "error: '--nightly' is no option of .ci/run" in done.stderr
