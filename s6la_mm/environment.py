"""The check that `import s6la_mm` begins with: is the stack below complete, and do its parts fit together?

It asks what can be imported, never which distribution gave it: the OpenMMLab packages and their maintained
forks have the same import names under different distribution names.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from types import ModuleType

_OPS = "MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir --no-binary mmcv 'mmcv==2.1.0'"


def check_environment() -> None:
    """Import what s6la_mm stands on, and say in one sentence what is missing or does not fit.

    Costs nothing beyond imports that s6la_mm needs anyway. mmseg and mmpretrain are optional: not looked at.

    Raises:
        ImportError: If a package is missing or incompatible; the message names it and the fix.
    """
    torch = _import('torch', missing='pip install torch torchvision')
    _import(
        'torchvision',
        missing='pip install the release made for your torch',
        broken=f'pip install the torchvision release made for torch {_version(torch)}',
    )
    mmengine = _import('mmengine', missing='pip install mmengine')
    _check_pkg_resources(mmengine)
    mmcv = _import('mmcv', missing=f'with its compiled ops: {_OPS}')
    no_ops = f'mmcv {_version(mmcv)} comes without ops compiled for torch {_version(torch)}: '
    no_ops += f'pip uninstall -y mmcv mmcv-lite, then {_OPS}'
    _import('mmcv._ext', missing=no_ops, broken=no_ops)
    _import(
        'mmdet',
        missing='pip install mmdet',
        broken=f'mmcv is {_version(mmcv)} and mmdet 3.3 needs one below 2.2: {_OPS}',
    )


def require_mmpretrain(user: str) -> None:
    """Import mmpretrain for `user`, which is built on it.

    Args:
        user (str): Name of the class.

    Raises:
        ImportError: If mmpretrain is missing or does not import; the message names the class and the fix.
    """
    _import('mmpretrain', missing='pip install mmpretrain', user=user)


def _import(
    name: str, missing: str, broken: str = 'install versions that fit each other', user: str = 's6la_mm'
) -> ModuleType:
    """Import `name`; where that fails, raise one sentence with the fix for an absent or a broken package."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            message = f'{user} needs {name}, which is not installed; {missing}'
        else:
            message = f'{user} needs {name}, which needs {error.name}; install the package that provides it'
    except Exception as error:  # whatever an unsuitable package raises: RuntimeError, AssertionError, OSError ...
        reason = ' '.join(str(error).split()).rstrip('.')
        message = f'{user} needs {name}, which does not import ({type(error).__name__}: {reason}); {broken}'
    raise ImportError(f'{message} (the README lists tested versions)') from None


def _check_pkg_resources(mmengine: ModuleType) -> None:
    """mmengine 0.10.7 imports pkg_resources when it resolves `mmdet::...`; its forks do without."""
    if find_spec('pkg_resources') is not None:
        return
    try:
        mmengine.utils.is_installed('mmengine')
    except ModuleNotFoundError:
        raise ImportError(
            f's6la_mm needs pkg_resources, which mmengine {_version(mmengine)} imports and setuptools 82 '
            "removed; put it back with: pip install 'setuptools<82'"
        ) from None


def _version(module: ModuleType) -> str:
    return getattr(module, '__version__', '(unknown version)')
