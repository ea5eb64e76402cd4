"""What the oldest supported torch (2.1) and numpy (1.26) lack; each entry names the release that ends it.

Nothing else in the package asks for a version. What a release has is taken as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import flop_counter

TORCH = tuple(int(part) for part in torch.__version__.split('.')[:2])


def _register_flop_formula(op: Any) -> Callable:
    def register(formula: Callable) -> Callable:
        if TORCH < (2, 2):
            flop_counter.flop_mapping[op] = formula
        else:  # torch's own function takes the overloads, which its counter does not ask for
            flop_counter.flop_registry[op] = flop_counter.shape_wrapper(formula)
        return formula

    return register


@functools.cache  # kept, as registrations end with the object
def _library(namespace: str) -> torch.library.Library:
    return torch.library.Library(namespace, 'FRAGMENT')


def _register_fake(name: str) -> Callable:
    def register(kernel: Callable) -> Callable:
        namespace, op = name.split('::')
        _library(namespace).impl(op, kernel, 'Meta')
        return kernel

    return register


def _register_autograd(name: str, backward: Callable, *, setup_context: Callable) -> None:
    """Registers a function whose forward pass calls the op again, below autograd."""
    namespace, name = name.split('::')
    op = getattr(getattr(torch.ops, namespace), name).default

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Tensor:
            with torch._C._AutoDispatchBelowAutograd():
                output = op(*inputs)
            setup_context(ctx, inputs, output)
            return output

    Gradient.backward = staticmethod(backward)
    _library(namespace).impl(name, Gradient.apply, 'Autograd')


class _RMSNorm(nn.Module):
    """``nn.RMSNorm`` over the last axis: its weight, names and representation."""

    def __init__(self, normalized_shape: int, eps: float) -> None:
        super().__init__()
        self.normalized_shape = (normalized_shape,)
        self.eps = eps
        self.elementwise_affine = True
        self.weight = nn.Parameter(torch.empty(self.normalized_shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the weight to one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises the last axis."""
        return rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        """As torch prints its own."""
        return f'{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}'


_RMSNorm.__name__ = _RMSNorm.__qualname__ = 'RMSNorm'  # configs name it: dict(type='Constant', layer='RMSNorm')


def _rms_norm(x: Tensor, normalized_shape: tuple[int, ...], weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _is_autocast_enabled(device_type: str) -> bool:
    return torch.is_autocast_cpu_enabled() if device_type == 'cpu' else torch.is_autocast_enabled()


class _FlopCounterMode(flop_counter.FlopCounterMode):
    """Of forward passes. torch's own hooks rewrap what a module gets: an FPN got its maps as so many arguments."""

    def _enter_module(self, name: str) -> Callable:
        return lambda module, inputs: self.parents.append(name)

    def _exit_module(self, name: str) -> Callable:
        def leave(module: nn.Module, inputs: Any, outputs: Any) -> None:
            self.parents.pop()

        return leave


def flop_counter_mode(model: nn.Module) -> flop_counter.FlopCounterMode:
    """One that counts by the modules of ``model``; since torch 2.4 it finds them itself."""
    if TORCH < (2, 4):
        return _FlopCounterMode(model, display=False)
    return flop_counter.FlopCounterMode(display=False)


def unfused_attention() -> AbstractContextManager:
    """Attention as matrix products, which FLOP counters see; under its present name since torch 2.3."""
    if TORCH >= (2, 3):
        from torch.nn.attention import SDPBackend, sdpa_kernel  # not loaded with this package

        return sdpa_kernel(SDPBackend.MATH)
    return torch.backends.cuda.sdp_kernel(enable_flash=False, enable_math=True, enable_mem_efficient=False)


def _never() -> bool:
    return False


# numpy 2
numpy_multiarray = np._core.multiarray if int(np.__version__.split('.')[0]) >= 2 else np.core.multiarray

# torch 2.3, as unfused_attention
is_compiling = torch.compiler.is_compiling if TORCH >= (2, 3) else torch._utils.is_compiling

# torch 2.4, as flop_counter_mode
register_autograd = getattr(torch.library, 'register_autograd', _register_autograd)
register_fake = getattr(torch.library, 'register_fake', _register_fake)
is_autocast_enabled = torch.is_autocast_enabled if TORCH >= (2, 4) else _is_autocast_enabled
RMSNorm = getattr(nn, 'RMSNorm', _RMSNorm)
rms_norm = getattr(F, 'rms_norm', _rms_norm)
FSDP_RUNS_ON_CPU = TORCH >= (2, 4)

# torch 2.6: its list of safe globals takes objects under another name; below, checkpoint/unpickling.py stands in.
SAFE_GLOBALS_HAVE_NAMES = TORCH >= (2, 6)
register_flop_formula = flop_counter.register_flop_formula if TORCH >= (2, 6) else _register_flop_formula

# torch 2.7
is_exporting = getattr(torch.compiler, 'is_exporting', _never)
