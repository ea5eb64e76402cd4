"""The public op of S6LA: one selective state update, and the scan of several of them over depth.

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

from . import reference

DISCRETIZATIONS = ('euler', 'zoh')


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
) -> Tensor:
    """Updates the state once: what one layer of the network writes.

    Arithmetic is float32, or float64 where an input is float64, whatever the storage types; gradients flow to every
    tensor. ``discretization='zoh'`` divides by ``A``, which must then be non-zero.

    Args:
        h (Tensor): State, map (batch, N, *space) or token (batch, D, N).
        x (Tensor): Input, like ``h``, or token (batch, D).
        dt (Tensor): Step Δ before bias and softplus, like ``x``.
        A (Tensor): Diagonal of the state matrix, (N,) for maps, (D, N) for tokens.
        B (Tensor): Selective input matrix, like ``h``, or token (batch, N).
        dt_bias (Tensor, optional): Added to ``dt``, (N,) or (D,). Defaults to None.
        dt_softplus (bool): Pass dt (+ bias) through softplus. Defaults to False.
        discretization (str): ``'euler'`` or ``'zoh'``. Defaults to ``'euler'``.

    Returns:
        Tensor: Next state, shape and dtype of ``h``.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If a shape, a device or ``discretization`` does not fit; the message names it.

    Example:
        >>> import torch
        >>> h, x, B = torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8), torch.ones(1, 4, 8, 8)
        >>> dt = torch.full_like(x, 0.1)
        >>> A = -torch.arange(1.0, 5.0)
        >>> selective_update(h, x, dt, A, B).unique()
        tensor([0.1000])
    """
    _check(h, x, dt, A, B, dt_bias, discretization, depth=())
    h_, x_, dt_, A_, B_, dt_bias_ = _to_compute_dtype(h, x, dt, A, B, dt_bias)
    return reference.step(h_, x_, dt_, A_, B_, dt_bias_, dt_softplus, discretization == 'zoh').to(h.dtype)


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
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If a shape, a device or ``discretization`` does not fit; the message names it.

    Example:
        >>> import torch
        >>> x, dt, B = torch.rand(5, 2, 16), torch.rand(5, 2, 16), torch.rand(5, 2, 8)
        >>> selective_scan(x, dt, -torch.rand(16, 8), B, return_states=True).shape
        torch.Size([5, 2, 16, 8])
    """
    if h0 is None:
        # A scan needs a state to be checked against; the right shape follows from the layout.
        _check_tensors(x=x, A=A)
        shape = x.shape[1:] + A.shape[1:]
        h0 = torch.zeros(shape, dtype=x.dtype, device=x.device)
    _check(h0, x, dt, A, B, dt_bias, discretization, depth=x.shape[:1])
    h, x_, dt_, A_, B_, dt_bias_ = _to_compute_dtype(h0, x, dt, A, B, dt_bias)
    states = []
    for x_t, dt_t, B_t in zip(x_, dt_, B_):
        h = reference.step(h, x_t, dt_t, A_, B_t, dt_bias_, dt_softplus, discretization == 'zoh')
        states.append(h)
    if not return_states:
        return h.to(h0.dtype)
    return (torch.stack(states) if states else h.new_empty((0, *h.shape))).to(h0.dtype)


def _to_compute_dtype(*tensors: Tensor | None) -> list[Tensor | None]:
    """Casts to float64 if any tensor is float64, else to float32."""
    given = [t for t in tensors if t is not None]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in given) else torch.float32
    return [None if t is None else t.to(dtype) for t in tensors]


def _check_tensors(**tensors: object) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f'{name} must be a floating-point tensor, got {got}')


def _check(
    h: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    dt_bias: Tensor | None,
    discretization: str,
    depth: tuple[int, ...],
) -> None:
    """Raises on anything that does not fit the layout table of the module; ``depth`` is (L,) for a scan."""
    if discretization not in DISCRETIZATIONS:
        raise ValueError(f'discretization={discretization!r} is not one of {DISCRETIZATIONS}')
    tensors = dict(h=h, x=x, dt=dt, A=A, B=B) | ({} if dt_bias is None else dict(dt_bias=dt_bias))
    _check_tensors(**tensors)
    if A.dim() not in (1, 2):
        raise ValueError(f'A must be (N,) for maps or (D, N) for tokens, got shape {tuple(A.shape)}')
    if reference.is_token_layout(A):
        if h.dim() != 3 or h.shape[1:] != A.shape:
            raise ValueError(f'h must be (batch, {A.shape[0]}, {A.shape[1]}) to fit A, got {tuple(h.shape)}')
        expected = dict(x=h.shape[:2], dt=h.shape[:2], B=(h.shape[0], h.shape[2]))
    else:
        if h.dim() < 2 or h.shape[1] != A.shape[0]:
            raise ValueError(f'h must be (batch, {A.shape[0]}, *space) to fit A, got {tuple(h.shape)}')
        expected = dict(x=h.shape, dt=h.shape, B=h.shape)
    expected = {name: (*depth, *shape) for name, shape in expected.items()} | dict(dt_bias=A.shape[:1])
    for name, tensor in tensors.items():
        if tensor.device != h.device:
            raise ValueError(f'{name} is on {tensor.device}, but the state is on {h.device}: move it there')
        if name in expected and tuple(tensor.shape) != tuple(expected[name]):
            raise ValueError(f'{name} must have shape {tuple(expected[name])}, got {tuple(tensor.shape)}')
