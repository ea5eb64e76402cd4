"""The check that `import s6la_mm` begins with: is the stack below complete, and do its parts fit together?

It asks what can be imported. Which distribution gave it matters for advice alone: the OpenMMLab packages and their
maintained forks (onedl-mmcv, onedl-mmdetection, ...) have the same import names, and one must not go on top of another.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType

# The first torch is the oldest that is tested, the last one the newest that mmcv compiles with.
_OLDEST, _TOO_NEW = (2, 1), (2, 14)
_FIT = 'install versions that fit each other'
# By import name: the distribution of the original, and of its fork.
_DISTRIBUTIONS = dict(
    mmengine=('mmengine', 'onedl-mmengine'),
    mmcv=('mmcv', 'onedl-mmcv'),
    mmdet=('mmdet', 'onedl-mmdetection'),
    mmseg=('mmsegmentation', 'onedl-mmsegmentation'),
    mmpretrain=('mmpretrain', 'onedl-mmpretrain'),
)


def check_environment() -> None:
    """Import what s6la_mm stands on, and say in one sentence what is missing or does not fit.

    Costs nothing beyond imports that s6la_mm needs anyway. mmseg and mmpretrain are optional: not looked at.

    Raises:
        ImportError: If a package is missing or incompatible; the message names it and the fix.
    """
    torch = _import('torch', lambda: "pip install 'torch<2.14' torchvision")
    _check_torch(_version(torch))
    _import(
        'torchvision',
        lambda: 'pip install the release made for your torch',
        lambda: f'pip install the torchvision release made for torch {_version(torch)}',
    )
    mmengine = _import('mmengine', lambda: _former_generation() or f'pip install {_distribution("mmengine")}')
    _check_pkg_resources(mmengine)
    mmcv = _import('mmcv', lambda: f'with its compiled ops: {_compile_mmcv()}')
    if _version(mmcv).startswith('1.'):
        raise _error(f's6la_mm needs mmcv 2, and here is {_version(mmcv)}; {_former_generation()}')

    def no_ops() -> str:
        names = [name for name in ('mmcv', 'mmcv-lite', 'onedl-mmcv') if _installed(name)] or ['mmcv']
        return (
            f'{" and ".join(names)} {_version(mmcv)} comes without ops compiled for torch {_version(torch)}: '
            f'pip uninstall -y {" ".join(names)}, then {_compile_mmcv()}'
        )

    _import('mmcv._ext', no_ops, no_ops)
    _import('mmdet', lambda: f'pip install {_distribution("mmdet")}', lambda: _advice_on_bounds(_version(mmcv)))


def require_mmpretrain(user: str) -> None:
    """Import mmpretrain for `user`, which is built on it.

    Args:
        user (str): Name of the class.

    Raises:
        ImportError: If mmpretrain is missing or does not import; the message names the class and the fix.
    """
    _import('mmpretrain', lambda: f'pip install {_distribution("mmpretrain")}', user=user)


def _import(
    name: str,
    missing: Callable[[], str],
    broken: Callable[[], str] = lambda: _FIT,
    user: str = 's6la_mm',
) -> ModuleType:
    """Import `name`; where that fails, raise one sentence with the fix for an absent or a broken package."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            message = f'{user} needs {name}, which is not installed; {_mixed() or _lost(name) or missing()}'
        else:
            message = f'{user} needs {name}, which needs {error.name}; install the package that provides it'
    except Exception as error:  # whatever an unsuitable package raises: RuntimeError, AssertionError, OSError ...
        reason = ' '.join(str(error).split()).rstrip('.')
        message = (
            f'{user} needs {name}, which does not import ({type(error).__name__}: {reason}); {_mixed() or broken()}'
        )
    raise _error(message) from None


def _error(message: str) -> ImportError:
    return ImportError(f'{message} (docs/environments.md lists tested versions)')


def _check_torch(version: str) -> None:
    if _release(version) < _OLDEST:
        raise _error(
            f's6la_mm needs torch 2.1 to 2.13, and here is {version}: mmcv belongs to one torch, so make a '
            "new environment, for example: pip install torch==2.1.2 torchvision==0.16.2 'numpy<2', "
            'then mim install mmcv==2.1.0'
        )
    if _release(version) >= _TOO_NEW:
        raise _error(
            f's6la_mm needs torch 2.1 to 2.13, and here is {version}, with which mmcv does not compile: '
            "pip install 'torch<2.14' 'torchvision<0.29', then compile mmcv again"
        )


def _former_generation() -> str:
    """What to do about mmcv 1.x with mmdet 2.x, which have neither mmengine nor its registries; empty without them."""
    versions = {name: _installed(name) for name in ('mmcv-full', 'mmcv', 'mmdet', 'mmsegmentation')}
    if not (versions['mmcv-full'] or versions['mmcv'] or '').startswith('1.'):
        return ''
    there = ', '.join(f'{name} {version}' for name, version in versions.items() if version)
    return (
        f'{there} are the generation before mmengine, with other models and configs: make an environment of its own '
        'with torch 2.1 or newer, mmengine, mmcv 2.1.0 and mmdet 3.3.0, and write the config in the form of mmdet 3; '
        'checkpoints of backbones load in both'
    )


def _mixed() -> str:
    """What to do where an original and its fork are installed one over the other; empty where that is not so."""
    packages = [package for package, names in _DISTRIBUTIONS.items() if all(map(_installed, names))]
    if not packages:
        return ''
    names = [name for package in packages for name in _DISTRIBUTIONS[package]]
    there = ' and '.join(f'{name} {_installed(name)}' for name in names)
    again = ', then '.join(map(_install, packages))
    return f'{there} overwrite each other, as the same imports: pip uninstall -y {" ".join(names)}, then {again}'


def _lost(package: str) -> str:
    """What to do where pip lists a package whose files are gone, as after one of original and fork was removed."""
    name = _distribution(package)
    version = _installed(name)
    if not version:
        return ''
    return f'pip lists {name} {version}, whose files are gone: pip uninstall -y {name}, then {_install(package)}'


def _install(package: str) -> str:
    return _compile_mmcv() if package == 'mmcv' else f'pip install --no-deps {_distribution(package)}'


def _check_pkg_resources(mmengine: ModuleType) -> None:
    """mmengine 0.10.7 imports pkg_resources when it resolves `mmdet::...`; its forks do without."""
    if find_spec('pkg_resources') is not None:
        return
    try:
        mmengine.utils.is_installed('mmengine')
    except ModuleNotFoundError:
        raise _error(
            f's6la_mm needs pkg_resources, which mmengine {_version(mmengine)} imports and setuptools 82 '
            "removed; put it back with: pip install 'setuptools<82'"
        ) from None


def _advice_on_bounds(mmcv: str) -> str:
    """What to do where mmdet does not take this mmcv: its own bound is the only reason."""
    mmdet, bound = _bound('mmdet', 'mmcv_maximum_version')
    if not bound or _release(mmcv) < _release(bound):
        return _FIT
    if not os.access(mmdet, os.W_OK):
        return f'mmdet takes mmcv below {bound}, and {mmdet} may not be written: make an environment of your own'
    major, minor = _release(mmcv)
    next_minor = f'{major}.{minor + 1}.0'
    edits = [f"mmcv_maximum_version in {mmdet} to '{next_minor}'"]
    mmseg, bound_of_mmseg = _bound('mmseg', 'MMCV_MAX')
    if bound_of_mmseg:
        edits.append(f"MMCV_MAX in {mmseg} to '{next_minor}'")
    return f'mmcv is {mmcv} and mmdet takes one below {bound}: set {" and ".join(edits)}, or {_compile_mmcv()}'


def _bound(package: str, name: str) -> tuple[str, str]:
    """The file and the value of a package's bound for mmcv, without importing the package; empty if it has none."""
    spec = find_spec(package)
    if spec is None or not spec.origin:
        return '', ''
    with open(spec.origin, encoding='utf-8') as file:
        found = re.search(rf'^{name} = [\'"]([^\'"]+)', file.read(), re.MULTILINE)
    return spec.origin, found[1] if found else ''


def _compile_mmcv() -> str:
    name = _distribution('mmcv')
    pin = '' if name.startswith('onedl') else '==2.1.0'
    return f'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir --no-binary {name} {name}{pin}'


def _distribution(package: str) -> str:
    """What to install for an import name: the fork where one of the forks is there alone, else the original."""
    original, fork = _DISTRIBUTIONS.get(package, (package, package))
    forked = any(_installed(fork) and not _installed(original) for original, fork in _DISTRIBUTIONS.values())
    return fork if forked else original


def _installed(distribution: str) -> str | None:
    from importlib import metadata  # slow, and only asked when something is wrong

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r'\d+', version)[:2])


def _version(module: ModuleType) -> str:
    return getattr(module, '__version__', '(unknown version)')
