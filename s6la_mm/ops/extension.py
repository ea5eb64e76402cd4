"""The compiled module ``s6la_mm._ext``: whether it is there, and for which devices it has kernels."""

from __future__ import annotations

import functools
import importlib
import json
import warnings

import torch

BUILD_COMMAND = 'S6LA_WITH_OPS=1 pip install --no-build-isolation --no-deps -e . (in the folder of s6la_mm)'


def _load() -> tuple[frozenset[str], str | None]:
    try:
        importlib.import_module('s6la_mm._ext')
    except ModuleNotFoundError:
        return frozenset(), 'it has not been compiled'
    except (ImportError, OSError) as error:  # compiled for another torch or Python
        return frozenset(), f'it does not load: {error}'
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
        f'Build it with: {BUILD_COMMAND}',
        stacklevel=3,
    )
