"""What tests of the op and the cells share: devices, dtypes, sample inputs, and a float64 oracle written as a loop."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from s6la_mm.ops.checks import DTYPES

DEVICES = ['cpu'] + (['cuda'] if torch.cuda.is_available() else [])
LAYOUTS = ['map', 'token']
# Storage rounding of one value: what a result may differ by where the arithmetic itself is float32 or better.
EPS = {dtype: torch.finfo(dtype).eps for dtype in DTYPES}


def sample_inputs(
    layout: str,
    *,
    depth: int | None = None,
    batch: int = 2,
    state_dim: int = 4,
    size: tuple[int, ...] = (5, 3),
    channels: int = 6,
    dtype: torch.dtype = torch.float32,
    device: str = 'cpu',
    requires_grad: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Random arguments of ``selective_update`` (or of ``selective_scan``, with ``depth`` steps) by name.

    Args:
        layout (str): ``'map'``: h is (batch, state_dim, *size); ``'token'``: h is (batch, channels, state_dim).
        depth (int, optional): Leading axis L of x, dt and B. Defaults to None: no such axis, and ``h`` for ``h0``.
        batch (int): Defaults to 2.
        state_dim (int): Numbers N. Defaults to 4.
        size (tuple[int, ...]): Space of the map layout. Defaults to (5, 3).
        channels (int): Channels D of the token layout. Defaults to 6.
        dtype (torch.dtype): Storage type of h, x, dt and B; A and dt_bias stay float32 or are float64 too. Defaults to
            float32.
        device (str): Defaults to ``'cpu'``.
        requires_grad (bool): Of all of them. Defaults to False.
        seed (int): Of the random numbers. Defaults to 0.

    Returns:
        dict[str, Tensor]: h (or h0), x, dt, A, B, dt_bias.

    Example:
        >>> from s6la_mm.ops import selective_update
        >>> selective_update(**sample_inputs('map'), dt_softplus=True).shape
        torch.Size([2, 4, 5, 3])
    """
    if layout == 'map':
        h = x = B = (batch, state_dim, *size)
        A: tuple[int, ...] = (state_dim,)
    else:
        h, x, B, A = (batch, channels, state_dim), (batch, channels), (batch, state_dim), (channels, state_dim)
    steps = () if depth is None else (depth,)
    generator = torch.Generator().manual_seed(seed)
    parameter_dtype = torch.float64 if dtype == torch.float64 else torch.float32

    def random(shape: tuple[int, ...], dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    inputs = {
        'h' if depth is None else 'h0': random(h),
        'x': random(steps + x),
        # Positive, as a step is without softplus too: a negative one would grow the state out of float16's range.
        'dt': random(steps + x).abs(),
        'A': -random(A, parameter_dtype).exp(),
        'B': random(steps + B),
        'dt_bias': random(A[:1], parameter_dtype).abs(),
    }
    return {name: tensor.detach().requires_grad_(requires_grad) for name, tensor in inputs.items()}


def oracle_update(
    h: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    discretization: str = 'euler',
) -> Tensor:
    """``selective_update`` in float64, one number after the other, from the scalar formula."""
    h, x, dt, A, B = (t.detach().double().cpu() for t in (h, x, dt, A, B))
    token = A.dim() == 2
    out = torch.empty_like(h)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in h.shape)).tolist():
        b, channel, rest = index[0], index[1], index[2:]
        at_x = (b, channel) if token else tuple(index)
        at_B = (b, *rest) if token else tuple(index)
        at_A = (channel, *rest) if token else (channel,)
        step = dt[at_x].item() + (0.0 if dt_bias is None else dt_bias[channel].item())
        if dt_softplus:
            step = max(step, 0.0) + math.log1p(math.exp(-abs(step)))
        a = A[at_A].item()
        gain = step if discretization == 'euler' else math.expm1(step * a) / a
        value = math.exp(step * a) * h[tuple(index)].item() + gain * B[at_B].item() * x[at_x].item()
        out[tuple(index)] = value
    return out
