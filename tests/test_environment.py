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
MMDET_ASSERTS = """import mmcv
mmcv_maximum_version = '2.2.0'
assert mmcv.__version__ < mmcv_maximum_version, f'MMCV=={mmcv.__version__} is used but incompatible.'"""
MMCV_2_2 = {'mmcv/__init__.py': "__version__ = '2.2.0'", 'mmdet/__init__.py': MMDET_ASSERTS}


FORKS = dict(onedl_mmengine='0.10.12', onedl_mmcv='2.3.6', onedl_mmdetection='3.5.1')


def installed(**versions: str) -> dict[str, str]:
    """What pip leaves of distributions of these versions."""
    return {
        f'{name}-{version}.dist-info/METADATA': f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
        for name, version in versions.items()
    }


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
        ({'torch/__init__.py': None}, ['needs torch,', 'not installed', "pip install 'torch<2.14' torchvision"]),
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
            MMCV_2_2,
            ['MMCV==2.2.0 is used but incompatible', 'below 2.2.0', "/mmdet/__init__.py to '2.3.0', or MMCV_WITH"],
        ),
        (
            {**MMCV_2_2, 'mmseg/__init__.py': "MMCV_MAX = '2.2.0'\nraise AssertionError"},
            ["/mmdet/__init__.py to '2.3.0' and MMCV_MAX in ", "/mmseg/__init__.py to '2.3.0', or MMCV_WITH"],
        ),
        (
            {'mmdet/__init__.py': "mmcv_maximum_version = '2.2.0'\nraise RuntimeError('numpy is broken')"},
            ['numpy is broken', 'install versions that fit each other'],
        ),
        ({'torch/__init__.py': "__version__ = '1.13.1+cu117'"}, ['torch 2.1 to 2.13', '1.13.1+cu117', 'torch==2.1.2']),
        ({'torch/__init__.py': "__version__ = '2.0.1'"}, ['torch 2.1 to 2.13', '2.0.1', 'mim install mmcv==2.1.0']),
        (
            {'torch/__init__.py': "__version__ = '2.14.1'"},
            ['here is 2.14.1', 'mmcv does not compile', "'torch<2.14' 'torchvision<0.29'"],
        ),
        (
            {
                'mmengine/__init__.py': None,
                'mmengine/utils.py': None,
                'mmcv/__init__.py': "__version__ = '1.7.2'",
                **installed(mmcv_full='1.7.2', mmdet='2.28.2'),
            },
            ['mmcv-full 1.7.2, mmdet 2.28.2 are the generation before', 'mmcv 2.1.0 and mmdet 3.3.0', 'checkpoints'],
        ),
        (
            {'mmcv/__init__.py': "__version__ = '1.7.2'", **installed(mmcv='1.7.2')},
            ['needs mmcv 2, and here is 1.7.2; mmcv 1.7.2 are the generation before'],
        ),
        (
            {'mmdet/__init__.py': None, **installed(onedl_mmcv='2.3.6')},
            ['mmdet, which is not installed', 'pip install onedl-mmdetection'],
        ),
        (
            {'mmcv/_ext.py': None, **installed(onedl_mmengine='0.10.12', onedl_mmcv='2.3.6')},
            [
                'onedl-mmcv 2.1.0 comes without ops',
                'uninstall -y onedl-mmcv, then',
                '--no-binary onedl-mmcv onedl-mmcv',
            ],
        ),
        (
            {'mmcv/_ext.py': None, **installed(mmcv_lite='2.1.0')},
            ['mmcv-lite 2.1.0 comes without ops', 'pip uninstall -y mmcv-lite, then', '--no-binary mmcv mmcv==2.1.0'],
        ),
        (
            {**MMCV_2_2, **installed(mmdet='3.3.0', **FORKS)},
            [
                'MMCV==2.2.0 is used but incompatible',
                'mmdet 3.3.0 and onedl-mmdetection 3.5.1 overwrite each other',
                'pip uninstall -y mmdet onedl-mmdetection, then pip install --no-deps onedl-mmdetection (docs',
            ],
        ),
        (
            {'mmcv/_ext.py': "raise ImportError('undefined symbol')", **installed(mmcv='2.1.0', onedl_mmcv='2.3.6')},
            ['mmcv 2.1.0 and onedl-mmcv 2.3.6 overwrite each other', '--no-binary mmcv mmcv==2.1.0'],
        ),
        (
            {'mmdet/__init__.py': None, **installed(**FORKS)},
            ['pip lists onedl-mmdetection 3.5.1, whose files are gone', 'then pip install --no-deps onedl-mmdetection'],
        ),
        (
            {'mmcv/__init__.py': None, 'mmcv/_ext.py': None, **installed(mmcv='2.1.0')},
            ['pip lists mmcv 2.1.0, whose files are gone: pip uninstall -y mmcv, then MMCV_WITH_OPS=1'],
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


def test_bound_in_a_file_that_may_not_be_written(tmp_path):
    """A site-packages of others: editing it is no advice."""
    for name, text in {**GOOD, **MMCV_2_2}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    no_access = f'import os; os.access = lambda path, mode: False; {CHECK}'
    result = run_with_stubs(tmp_path, {}, no_access)
    assert 'mmdet/__init__.py may not be written: make an environment of your own' in last_line(result)
    assert 'mmcv_maximum_version' not in last_line(result)


@pytest.mark.parametrize('version', ['2.1.2+cu121', '2.4.1', '2.13.0+cpu'])
def test_supported_releases_of_torch_pass(tmp_path, version):
    result = run_with_stubs(tmp_path, {**GOOD, 'torch/__init__.py': f"__version__ = '{version}'"}, CHECK)
    assert result.returncode == 0, result.stderr


def test_import_of_the_package_checks_first(tmp_path):
    result = run_with_stubs(tmp_path, {**GOOD, 'torch/__init__.py': None}, 'import s6la_mm')
    assert result.returncode == 1
    assert last_line(result).startswith('ImportError: s6la_mm needs torch, which is not installed')
