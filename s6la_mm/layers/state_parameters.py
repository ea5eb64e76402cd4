"""What the cells of S6LA share: the check of their options, and the decay rates and steps that they start from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import compat
from ..ops import DISCRETIZATIONS
from .options import is_positive, require

INPUT_NORMS = ('rms', None)


def check_cell_options(
    state_dim: int, discretization: str, input_norm: str | None, dt_range: tuple[float, float]
) -> None:
    """Raises a ValueError that names option, value and allowed values if an option of a cell is not allowed."""
    require(is_positive(state_dim), 'state_dim', state_dim, 'a positive integer')
    require(discretization in DISCRETIZATIONS, 'discretization', discretization, f'one of {DISCRETIZATIONS}')
    require(input_norm in INPUT_NORMS, 'input_norm', input_norm, f'one of {INPUT_NORMS}')
    is_range = isinstance(dt_range, Sequence) and len(dt_range) == 2 and 0 < dt_range[0] <= dt_range[1]
    require(is_range, 'dt_range', dt_range, 'two positive numbers, the smaller one first')


@torch.no_grad()
def reset_state_parameters(A_log: Tensor, dt_bias: Tensor, dt_range: tuple[float, float]) -> None:
    """Sets A_n = −(n + 1) (S4D-real) and softplus(b_Δ) log-uniform, in place.

    Args:
        A_log (Tensor): log(−A), (N,), or (D, N) with the same N numbers in every row.
        dt_bias (Tensor): b_Δ, (N,) or (D,).
        dt_range (tuple[float, float]): Range of softplus(b_Δ).
    """
    A_log.copy_(torch.arange(1, A_log.shape[-1] + 1).log())
    low, high = (math.log(dt) for dt in dt_range)
    dt = torch.empty_like(dt_bias).uniform_(low, high).exp()
    # The inverse of softplus, written so that small dt keep their digits.
    dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))


def rms_norm(norm: nn.Module, u: Tensor) -> Tensor:
    """``norm`` over the last axis of ``u``, in float32 at least: its mean of squares needs that."""
    u = at_least_float32(u)
    return compat.rms_norm(u, norm.normalized_shape, norm.weight.to(u.dtype), norm.eps)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Casts half types to float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
