"""The compiled module ``s6la_mm._ext``: whether it is there, and for which devices it has kernels."""

from __future__ import annotations

import functools
import importlib
import json
import shlex
import warnings
from pathlib import Path

import torch

from ..version import __version__


def _load() -> tuple[frozenset[str], str | None]:
    try:
        importlib.import_module('s6la_mm._ext')
    except ModuleNotFoundError:
        return frozenset(), 'it has not been compiled'
    except (ImportError, OSError) as error:  # compiled for another torch or Python
        return frozenset(), f'it does not load: {error}'
    built_for = json.loads(torch.ops.s6la_mm.build_info())['torch']
    if not torch.__version__.startswith(built_for.rpartition('.')[0] + '.'):
        return frozenset(), f'it was compiled for torch {built_for}, and this is {torch.__version__}'
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    devices = {'cpu': 'CPU', 'cuda': 'CUDA'}
    return frozenset(d for d, key in devices.items() if has_kernel('s6la_mm::selective_scan', key)), None


# Loaded with the package, not at the first call: torch.compile traces what the functions below do.
_DEVICES, _LOAD_ERROR = _load()


def compiled_devices() -> frozenset[str]:
    """Device types that the compiled op has kernels for, ``{'cpu'}`` or ``{'cpu', 'cuda'}``; empty without it."""
    return _DEVICES


def load_error() -> str | None:
    """Why the compiled module cannot be used; None if it can."""
    return _LOAD_ERROR


def build_info() -> dict[str, str | None]:
    """What the compiled module was built from and for: torch, compiler, cuda, cuda_archs, cpu_capability (at run time).

    Empty without the module.
    """
    return {} if load_error() else json.loads(torch.ops.s6la_mm.build_info())


@functools.cache
def build_command() -> str:
    """The command that compiles the op, for the way in which the package was installed."""
    command = 'S6LA_WITH_OPS=1 pip install --no-build-isolation --no-deps '
    clone = Path(__file__).parents[2]
    if (clone / 'setup.py').is_file():
        return f'{command}-e {shlex.quote(str(clone))}'
    from importlib import metadata  # slow, and asked at most once

    try:
        source = json.loads(metadata.distribution('s6la_mm').read_text('direct_url.json') or '{}')
    except metadata.PackageNotFoundError:
        source = {}
    url, vcs = source.get('url', ''), source.get('vcs_info')
    if vcs:
        target = shlex.quote(f'{vcs["vcs"]}+{url}@{vcs["commit_id"]}')
    elif url and not url.endswith('.whl'):
        target = shlex.quote(url)
    else:  # a wheel: its sources are in the archive that `python -m build` puts beside it, or in that of an index
        beside = f'--find-links {shlex.quote(url.rpartition("/")[0])} ' if url else ''
        target = f'{beside}--no-binary s6la_mm s6la_mm=={__version__}'
    # Without the cache, in which pip keeps what it built without the op.
    return f'{command}--force-reinstall --no-cache-dir {target}'


@functools.cache
def warn_not_compiled(device: str) -> None:
    """Says once per device type that the op runs in plain PyTorch there, and how to build it."""
    if load_error():
        reason = f'its compiled op is not used because {load_error()}'
    elif device == 'cuda':
        reason = 'its compiled op has no CUDA kernels: a build with FORCE_CUDA=1 adds them'
    else:
        reason = f'its compiled op has no kernels for {device}'
    warnings.warn(
        f's6la_mm updates its state in plain PyTorch on {device}, which is slower and takes more memory; {reason}. '
        f'Build it with: {build_command()}',
        stacklevel=3,
    )
