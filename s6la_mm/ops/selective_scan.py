"""The public op of S6LA: one selective state update, and the scan of several of them over depth.

Both run as one compiled op (csrc/) on devices that it has been compiled for, and in plain PyTorch elsewhere.

Definition (``A`` diagonal and negative, Δ > 0; S6 of Gu & Dao, arXiv 2312.00752, eq. 2, over the layers of a network
as in S6LA, arXiv 2502.10463)::

    h' = exp(Δ A) ⊙ h + B̄ x        B̄ = Δ B                    discretization='euler'
                                    B̄ = (exp(Δ A) − 1) / A · B  discretization='zoh'

with Δ = softplus(dt + dt_bias) if ``dt_softplus`` else dt + dt_bias. Two layouts, told apart by the rank of ``A``:

====== =================== ============ ============ ====== ============ ========
layout h                   x            dt           A      B            dt_bias
====== =================== ============ ============ ====== ============ ========
map    (batch, N, *space)  like h       like h       (N,)   like h       (N,)
token  (batch, D, N)       (batch, D)   (batch, D)   (D, N) (batch, N)   (D,)
====== =================== ============ ============ ====== ============ ========
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..compat import is_compiling, is_exporting
from . import extension, reference
from .checks import DISCRETIZATIONS, check_arguments, check_tensors

if extension.compiled_devices():
    from . import library  # noqa: F401  (registers what torch.library needs beside the kernels)


def selective_update(
    h: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    *,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    discretization: str = 'euler',
    norm_eps: float | None = None,
) -> Tensor:
    """Updates the state once: what one layer of the network writes.

    Arithmetic is float32, or float64 where an input is float64, whatever the storage types; gradients flow to every
    tensor. ``discretization='zoh'`` divides by ``A``, which must then be non-zero.

    With ``norm_eps`` x, dt and B are first divided by ``sqrt(mean(x²) + norm_eps)``, the mean taken over the channels
    of a pixel or token. That is an RMS norm of x for free, where dt and B are linear maps of x: the norm's factor is
    the same before and after them.

    Args:
        h (Tensor): State, map (batch, N, *space) or token (batch, D, N).
        x (Tensor): Input, like ``h``, or token (batch, D).
        dt (Tensor): Step Δ before bias and softplus, like ``x``.
        A (Tensor): Diagonal of the state matrix, (N,) for maps, (D, N) for tokens.
        B (Tensor): Selective input matrix, like ``h``, or token (batch, N).
        dt_bias (Tensor, optional): Added to ``dt``, (N,) or (D,). Defaults to None.
        dt_softplus (bool): Pass dt (+ bias) through softplus. Defaults to False.
        discretization (str): ``'euler'`` or ``'zoh'``. Defaults to ``'euler'``.
        norm_eps (float, optional): Normalise x, dt and B by the root mean square of x. Defaults to None: they are
            taken as they are.

    Returns:
        Tensor: Next state, shape and dtype of ``h``.

    Raises:
        TypeError: If an argument is not a dense tensor of float64, float32, float16 or bfloat16.
        ValueError: If a shape, a device or ``discretization`` does not fit; the message names it.

    Example:
        >>> import torch
        >>> h, x, B = torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8), torch.ones(1, 4, 8, 8)
        >>> dt = torch.full_like(x, 0.1)
        >>> A = -torch.arange(1.0, 5.0)
        >>> selective_update(h, x, dt, A, B).unique()
        tensor([0.1000])
    """
    check_arguments(h, x, dt, A, B, dt_bias, depth=(), state='h')
    zoh = _is_zoh(discretization)
    if norm_eps is not None and reference.is_token_layout(A):  # small tensors: the kernel leaves them to PyTorch
        x, dt, B = reference.normalize(x, dt, B, norm_eps)
        norm_eps = None
    return _scan(x.unsqueeze(0), dt.unsqueeze(0), A, B.unsqueeze(0), h, dt_bias, dt_softplus, zoh, False, norm_eps)


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    h0: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    discretization: str = 'euler',
    return_states: bool = False,
) -> Tensor:
    """Scans L inputs that are all known: L times :func:`selective_update`, state kept in the compute type between.

    Args:
        x (Tensor): Inputs, map (L, batch, N, *space) or token (L, batch, D).
        dt (Tensor): Steps, like ``x``.
        A (Tensor): (N,) for maps, (D, N) for tokens.
        B (Tensor): Like ``x``, or token (L, batch, N).
        h0 (Tensor, optional): Initial state, map (batch, N, *space) or token (batch, D, N). Defaults to zeros of
            the dtype of ``x``.
        dt_bias (Tensor, optional): (N,) or (D,). Defaults to None.
        dt_softplus (bool): Pass dt (+ bias) through softplus. Defaults to False.
        discretization (str): ``'euler'`` or ``'zoh'``. Defaults to ``'euler'``.
        return_states (bool): Return all L states rather than the last. Defaults to False.

    Returns:
        Tensor: Last state in the dtype of ``h0`` (of ``x`` without one), or the states with a leading axis L.

    Raises:
        TypeError: If an argument is not a dense tensor of float64, float32, float16 or bfloat16.
        ValueError: If a shape, a device or ``discretization`` does not fit; the message names it.

    Example:
        >>> import torch
        >>> x, dt, B = torch.rand(5, 2, 16), torch.rand(5, 2, 16), torch.rand(5, 2, 8)
        >>> selective_scan(x, dt, -torch.rand(16, 8), B, return_states=True).shape
        torch.Size([5, 2, 16, 8])
    """
    if h0 is None:
        # A scan needs a state to be checked against; the right shape follows from the layout.
        check_tensors(x=x, A=A)
        h0 = x.new_zeros(x.shape[1:] + A.shape[1:])
    check_arguments(h0, x, dt, A, B, dt_bias, depth=x.shape[:1], state='h0')
    return _scan(x, dt, A, B, h0, dt_bias, dt_softplus, _is_zoh(discretization), return_states, None)


def _is_zoh(discretization: str) -> bool:
    if discretization not in DISCRETIZATIONS:
        raise ValueError(f'discretization={discretization!r} is not one of {DISCRETIZATIONS}')
    return discretization == 'zoh'


def _scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    h0: Tensor,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    zoh: bool,
    return_states: bool,
    norm_eps: float | None,
) -> Tensor:
    """The compiled op where the state's device has kernels; elsewhere, and in what is exported, plain PyTorch."""
    arguments = (x, dt, A, B, h0, dt_bias, dt_softplus, zoh, return_states, norm_eps)
    # Nobody who runs an exported graph can be expected to have the op.
    if not (is_exporting() or torch.jit.is_tracing()):
        if h0.device.type in extension.compiled_devices():
            return torch.ops.s6la_mm.selective_scan(*arguments)
        if h0.device.type != 'meta' and not is_compiling():
            extension.warn_not_compiled(h0.device.type)
    return reference.scan(*arguments)
