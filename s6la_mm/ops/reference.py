"""The selective update as a formula in plain PyTorch: the oracle of the tests and the path without the extension.

Nothing is checked here and nothing is cast: :mod:`s6la_mm.ops.selective_scan` does both before it calls in.
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
        dt = F.softplus(dt)
    exponent = dt * A
    # expm1 keeps the digits that exp(z) − 1 loses for the small Δ that training starts from.
    gain = torch.expm1(exponent) / A if zoh else dt
    return torch.exp(exponent) * h + gain * B * x
