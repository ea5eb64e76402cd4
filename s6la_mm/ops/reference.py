"""The op in plain PyTorch: the oracle of the tests, the path without the compiled op, and what is exported.

Nothing is checked here: :mod:`s6la_mm.ops.selective_scan` does that before it calls in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def is_token_layout(A: Tensor) -> bool:
    """Whether ``A`` is (D, N), the token layout, rather than (N,), the map layout."""
    return A.dim() == 2


def step(
    h: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, dt_bias: Tensor | None, dt_softplus: bool, zoh: bool
) -> Tensor:
    """One state update, ``exp(Δ A) ⊙ h + B̄ x``, in the dtype of the inputs.

    Args:
        h (Tensor): State, map (batch, N, *space) or token (batch, D, N).
        x (Tensor): Input, like ``h``, or token (batch, D).
        dt (Tensor): Step Δ before bias and softplus, like ``x``.
        A (Tensor): Diagonal of the state matrix, (N,) or (D, N).
        B (Tensor): Input matrix, like ``h``, or token (batch, N).
        dt_bias (Tensor, optional): (N,) or (D,).
        dt_softplus (bool): Whether Δ = softplus(dt + dt_bias).
        zoh (bool): ``B̄ = (exp(Δ A) − 1) / A · B`` rather than ``Δ B``.

    Returns:
        Tensor: The next state, shape of ``h``.
    """
    if is_token_layout(A):
        x, dt, B = x.unsqueeze(-1), dt.unsqueeze(-1), B.unsqueeze(-2)
        dt_bias = None if dt_bias is None else dt_bias.unsqueeze(-1)
    else:
        per_channel = (-1,) + (1,) * (h.dim() - 2)
        A = A.reshape(per_channel)
        dt_bias = None if dt_bias is None else dt_bias.reshape(per_channel)
    if dt_bias is not None:
        dt = dt + dt_bias
    if dt_softplus:
        # Above the default threshold of 20 PyTorch drops 2e-9, which a float64 has digits for.
        dt = F.softplus(dt, threshold=40)
    exponent = dt * A
    # expm1 keeps the digits that exp(z) − 1 loses for the small Δ that training starts from.
    gain = torch.expm1(exponent) / A if zoh else dt
    return torch.exp(exponent) * h + gain * B * x


def scan(
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
    """What the compiled op does: L steps in float32 (float64 if an argument is float64), result in the dtype of ``h0``.

    Args:
        x (Tensor): Inputs, (L, batch, N, *space) or (L, batch, D).
        dt (Tensor): Steps, like ``x``.
        A (Tensor): Diagonal of the state matrix, (N,) or (D, N).
        B (Tensor): Input matrices, like ``x``, or token (L, batch, N).
        h0 (Tensor): Initial state, map (batch, N, *space) or token (batch, D, N).
        dt_bias (Tensor, optional): (N,) or (D,).
        dt_softplus (bool): Whether Δ = softplus(dt + dt_bias).
        zoh (bool): ``B̄ = (exp(Δ A) − 1) / A · B`` rather than ``Δ B``.
        return_states (bool): All L states rather than the last.
        norm_eps (float, optional): Normalise first, see :func:`normalize`.

    Returns:
        Tensor: The last state, shape of ``h0``, or the states, (L, *shape of h0).
    """
    given = [tensor for tensor in (x, dt, A, B, h0, dt_bias) if tensor is not None]
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in given) else torch.float32
    A, h = A.to(dtype), h0.to(dtype)
    dt_bias = None if dt_bias is None else dt_bias.to(dtype)
    states = []
    for inputs in zip(x, dt, B):
        x_t, dt_t, B_t = (tensor.to(dtype) for tensor in inputs)
        if norm_eps is not None:
            x_t, dt_t, B_t = normalize(x_t, dt_t, B_t, norm_eps)
        h = step(h, x_t, dt_t, A, B_t, dt_bias, dt_softplus, zoh)
        states.append(h)
    if return_states:
        h = torch.stack(states) if states else h.new_empty((0, *h.shape))
    return h.to(h0.dtype)


def normalize(x: Tensor, dt: Tensor, B: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Divides one step's x, dt and B by the root mean square of x over its channels, axis 1."""
    scale = (x.square().mean(1, keepdim=True) + eps).rsqrt()
    return x * scale, dt * scale, B * scale
