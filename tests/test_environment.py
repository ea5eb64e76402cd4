"""`check_environment` on stacks of stub packages, in a Python without site-packages that sees only them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import s6la_mm
from s6la_mm.environment import check_environment

PACKAGE = Path(s6la_mm.__file__).parent
MMENGINE_WITH_PKG_RESOURCES = {
    'mmengine/__init__.py': "from . import utils\n__version__ = '0.10.7'",
    'mmengine/utils.py': 'def is_installed(name):\n    import pkg_resources',
}
GOOD = {
    'torch/__init__.py': "__version__ = '2.13.0'",
    'torchvision/__init__.py': "__version__ = '0.28.0'",
    'pkg_resources/__init__.py': '',
    **MMENGINE_WITH_PKG_RESOURCES,
    'mmcv/__init__.py': "__version__ = '2.1.0'",
    'mmcv/_ext.py': '',
    'mmdet/__init__.py': "__version__ = '3.3.0'",
}
MMDET_ASSERTS = "import mmcv\nassert mmcv.__version__ < '2.2.0', f'MMCV=={mmcv.__version__} is used but incompatible.'"


def run_with_stubs(folder: Path, stubs: dict[str, str | None], code: str) -> subprocess.CompletedProcess:
    """Write the stub files (None: not there); run `code` where only they and the standard library exist."""
    for name, text in stubs.items():
        if text is not None:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(folder), str(PACKAGE.parent)])}
    return subprocess.run([sys.executable, '-S', '-c', code], env=env, capture_output=True, text=True, check=False)


CHECK = f'import runpy; runpy.run_path({str(PACKAGE / "environment.py")!r})["check_environment"]()'


def last_line(result: subprocess.CompletedProcess) -> str:
    return result.stderr.strip().splitlines()[-1]


def test_real_stack_passes():
    check_environment()


def test_stub_stack_passes(tmp_path):
    result = run_with_stubs(tmp_path, GOOD, CHECK)
    assert result.returncode == 0, result.stderr


def test_fork_of_mmengine_passes_without_pkg_resources(tmp_path):
    fork = {
        'pkg_resources/__init__.py': None,
        'mmengine/utils.py': 'def is_installed(name):\n    return True',
    }
    result = run_with_stubs(tmp_path, {**GOOD, **fork}, CHECK)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'torch/__init__.py': None}, ['needs torch,', 'not installed', 'pip install torch torchvision']),
        ({'torchvision/__init__.py': None}, ['needs torchvision,', 'not installed', 'made for your torch']),
        (
            {'torchvision/__init__.py': "raise RuntimeError('operator torchvision::nms does not exist')"},
            ['torchvision::nms', 'made for torch 2.13.0'],
        ),
        (
            {'mmengine/__init__.py': None, 'mmengine/utils.py': None},
            ['needs mmengine,', 'pip install mmengine'],
        ),
        ({'pkg_resources/__init__.py': None}, ['pkg_resources', "pip install 'setuptools<82'"]),
        ({'mmcv/__init__.py': None, 'mmcv/_ext.py': None}, ['needs mmcv,', 'MMCV_WITH_OPS=1 pip install']),
        ({'mmcv/__init__.py': 'import cv2'}, ['needs mmcv,', 'needs cv2']),
        ({'mmcv/_ext.py': None}, ['mmcv 2.1.0', 'without ops', 'MMCV_WITH_OPS=1 pip install']),
        (
            {'mmcv/_ext.py': "raise ImportError('_ext.so: undefined symbol: _ZN2at4')"},
            ['undefined symbol', 'compiled for torch 2.13.0', 'MMCV_WITH_OPS=1 pip install'],
        ),
        ({'mmdet/__init__.py': None}, ['needs mmdet,', 'not installed', 'pip install mmdet']),
        (
            {'mmcv/__init__.py': "__version__ = '2.2.0'", 'mmdet/__init__.py': MMDET_ASSERTS},
            ['MMCV==2.2.0 is used but incompatible', 'mmdet 3.3 needs one below 2.2', "'mmcv==2.1.0'"],
        ),
    ],
)
def test_unsuitable_stack_gets_one_sentence(tmp_path, change, words):
    result = run_with_stubs(tmp_path, {**GOOD, **change}, CHECK)
    assert result.returncode == 1
    assert last_line(result).startswith('ImportError: s6la_mm needs ')
    for word in words:
        assert word in last_line(result)
    assert 'During handling' not in result.stderr and 'direct cause' not in result.stderr
    assert str(tmp_path) not in result.stderr.replace(last_line(result), ''), 'a frame from inside the package shows'


def test_import_of_the_package_checks_first(tmp_path):
    result = run_with_stubs(tmp_path, {**GOOD, 'torch/__init__.py': None}, 'import s6la_mm')
    assert result.returncode == 1
    assert last_line(result).startswith('ImportError: s6la_mm needs torch, which is not installed')
