"""The token S6LA cell: how a block's output is written to the state, and how its tokens read the state.

It knows tokens, not backbones. The equations are the two steps of "On tokens" in docs/definition.md (after Liu et al.,
"From Layers to States", ICLR 2025, arXiv 2502.10463).
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..compat import RMSNorm, is_autocast_enabled
from ..ops import selective_update
from .state_parameters import at_least_float32, check_cell_options, reset_state_parameters, rms_norm


class S6LATokenCell(BaseModule):
    r"""Writes a block's summary token to the state, selectively: the write step of S6LA for tokens.

    With the summary token :math:`o` (see :func:`summary_token`) and the state :math:`h`, N numbers per channel::

        u = RMSNorm(o)        Δ = softplus(W_Δ u + b_Δ)        B = W_B u
        h'[d, n] = exp(Δ[d] A[d, n]) h[d, n] + Δ[d] B[n] u[d]          ('euler'; see s6la_mm.ops)

    The norm runs over the D channels. It bounds the product B[n] u[d], which is quadratic in the features.
    ``A_log``, ``dt_bias`` and the norm's gain must not be weight-decayed (see ``S6LAOptimWrapperConstructor``).

    Args:
        channels (int): Channels D of the tokens.
        state_dim (int): Numbers N per channel. Defaults to 16.
        discretization (str): ``'euler'`` or ``'zoh'``. Defaults to ``'euler'``.
        input_norm (str, optional): ``'rms'`` or None. Defaults to ``'rms'``.
        dt_range (tuple[float, float]): softplus(b_Δ) starts log-uniform in this range. Defaults to (1e-3, 1e-1).

    Raises:
        ValueError: If an argument is not one of its allowed values.

    Example:
        >>> import torch
        >>> cell = S6LATokenCell(channels=192)
        >>> cell(torch.rand(2, 192), torch.zeros(2, 192, 16)).shape
        torch.Size([2, 192, 16])
    """

    state_axes: ClassVar[dict[str, tuple[int, ...]]] = {'A_log': (1,), 'B_proj.weight': (0,)}
    not_decayed = ('A_log', 'dt_bias', 'input_norm')

    def __init__(
        self,
        channels: int,
        state_dim: int = 16,
        discretization: str = 'euler',
        input_norm: str | None = 'rms',
        dt_range: tuple[float, float] = (1e-3, 1e-1),
    ) -> None:
        super().__init__()
        check_cell_options(state_dim, discretization, input_norm, dt_range)
        self.discretization = discretization
        self.dt_range = dt_range
        self.input_norm = RMSNorm(channels, eps=1e-6) if input_norm == 'rms' else None
        self.dt_proj = nn.Linear(channels, channels, bias=False)
        self.B_proj = nn.Linear(channels, state_dim, bias=False)
        self.A_log = nn.Parameter(torch.empty(channels, state_dim))
        self.dt_bias = nn.Parameter(torch.empty(channels))
        reset_state_parameters(self.A_log, self.dt_bias, dt_range)

    def init_weights(self) -> None:
        """Initialises the cell; a parent's ``init_cfg`` (a truncated normal on every Linear) is overwritten."""
        super().init_weights()
        for proj in (self.dt_proj, self.B_proj):
            proj.reset_parameters()
        if self.input_norm is not None:
            self.input_norm.reset_parameters()
        reset_state_parameters(self.A_log, self.dt_bias, self.dt_range)

    def forward(self, o: Tensor, h: Tensor) -> Tensor:
        """Returns the next state.

        Args:
            o (Tensor): The summary token of the block's output, (batch, D).
            h (Tensor): State, (batch, D, N); it keeps its own dtype under autocast.

        Returns:
            Tensor: Next state, (batch, D, N), in the dtype of ``h``.
        """
        u = o if self.input_norm is None else rms_norm(self.input_norm, o).to(self.dt_proj.weight.dtype)
        return selective_update(
            h,
            u,
            self.dt_proj(u),
            -at_least_float32(self.A_log).exp(),
            self.B_proj(u),
            dt_bias=self.dt_bias,
            dt_softplus=True,
            discretization=self.discretization,
        )

    @torch.no_grad()
    def gates(self, o: Tensor) -> tuple[Tensor, Tensor]:
        """How far a token would be written, to look at: training computes the same inside the op.

        Args:
            o (Tensor): The summary token of the block's output, (batch, D).

        Returns:
            tuple[Tensor, Tensor]: Step sizes Δ, (batch, D), and decays exp(Δ A) of the state, (batch, D, N), float32.
        """
        u = at_least_float32(o) if self.input_norm is None else rms_norm(self.input_norm, o)
        dt = F.softplus(F.linear(u, self.dt_proj.weight.to(u.dtype)) + self.dt_bias)
        return dt, torch.exp(-self.A_log.exp() * dt.unsqueeze(-1))


class TokenRead(nn.Linear):
    """A block's view of the state: every patch token O_p reads it with a row C = W_C O_p of its own.

    ``X_p = O_p + C hᵀ``; extra tokens (the class token) pass unchanged. W_C starts at zero: a new S6LA network
    computes what the plain network computes.

    Args:
        channels (int): Channels D of the tokens.
        state_dim (int): Numbers N of the state per channel.

    Example:
        >>> import torch
        >>> TokenRead(192, 16)(torch.rand(2, 197, 192), torch.rand(2, 192, 16), num_extra_tokens=1).shape
        torch.Size([2, 197, 192])
    """

    state_axes: ClassVar[dict[str, tuple[int, ...]]] = {'weight': (0,)}

    def __init__(self, channels: int, state_dim: int) -> None:
        super().__init__(channels, state_dim, bias=False)

    def reset_parameters(self) -> None:
        """Sets the weight to zero, at construction too."""
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor, h: Tensor, num_extra_tokens: int = 0) -> Tensor:
        """Adds to the patch tokens what they read.

        Args:
            x (Tensor): The block's output, (batch, extra tokens + P, D).
            h (Tensor): State, (batch, D, N).
            num_extra_tokens (int): Tokens at the front that do not read. Defaults to 0.

        Returns:
            Tensor: Like ``x``; under autocast in the wider type of ``x`` and the autocast type, as residuals are.
        """
        # Two thin products cost 4 N D per token; folding W_C and h into one D × D matrix would cost 2 D².
        C = super().forward(x)
        if num_extra_tokens:
            # Rows of zeros instead of a slice: cutting x up and joining it again would copy all tokens twice.
            C[:, :num_extra_tokens] = 0
        h = h.to(C.dtype).transpose(1, 2)
        if x.dtype == C.dtype:
            return torch.baddbmm(x, C, h)  # without a tensor of what is read
        return x + torch.bmm(C, h)  # autocast, which would round a float32 residual x in baddbmm

    def init_weights(self) -> None:
        """Called by mmengine after a parent's ``init_cfg``, which would otherwise have the last word."""
        self.reset_parameters()


class StateCarry(nn.Linear):
    """Carries the state to a stage of other width: a learned map D → D' of its channel axis.

    Example:
        >>> import torch
        >>> StateCarry(96, 192)(torch.rand(2, 96, 16)).shape
        torch.Size([2, 192, 16])
    """

    state_axes: ClassVar[dict[str, tuple[int, ...]]] = {}

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """Maps the state (batch, D, N) to (batch, D', N), in its own dtype under autocast too."""
        if h.device.type != 'meta' and is_autocast_enabled(h.device.type):  # which knows no meta device
            with torch.autocast(h.device.type, enabled=False):
                return torch.matmul(self.weight.to(h.dtype), h)
        return torch.matmul(self.weight, h).to(h.dtype)

    def init_weights(self) -> None:
        """Called by mmengine after a parent's ``init_cfg``, which would otherwise have the last word."""
        self.reset_parameters()


def summary_token(x: Tensor, num_extra_tokens: int = 0) -> Tensor:
    """The token (batch, D) that is written: of (batch, P, D) tokens the first if it is extra, else the mean of all."""
    return x[:, 0] if num_extra_tokens else x.mean(dim=1)
