"""The convolutional S6LA cell: how a stage's blocks read the state, and how their outputs are written to it.

It knows feature maps, not backbones. The equations are the steps 1, 3 and 4 of "On feature maps" in
docs/definition.md (after Liu et al., "From Layers to States", ICLR 2025, arXiv 2502.10463).
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..compat import RMSNorm, is_compiling
from ..ops import selective_update
from .options import require
from .state_parameters import at_least_float32, check_cell_options, reset_state_parameters, rms_norm


class StateRead(nn.Conv2d):
    """A block's view of the state: a bias-free convolution that is added to what the block computes.

    A convolution of the concatenation [x, h] is the sum of two convolutions, so ``conv1(x) + read(h)`` reads the
    state without concatenating anything and without changing the shape or name of ``conv1``. It starts at zero: a
    new S6LA network computes what the plain network computes.

    Args:
        state_dim (int): Channels N of the state.
        conv (nn.Conv2d | int): The convolution beside which it stands and whose geometry it copies, or the channels of
            the map that it is added to, for a 1 × 1 convolution.
        read_init (str): ``'zero'``, or ``'kaiming'`` for weights as the other convolutions of a ResNet get them.
            Defaults to ``'zero'``.

    Raises:
        ValueError: If ``read_init`` is something else.

    Example:
        >>> import torch
        >>> conv1 = nn.Conv2d(64, 128, 3, stride=2, padding=1)
        >>> StateRead(32, conv1)(torch.rand(2, 32, 15, 20)).shape
        torch.Size([2, 128, 8, 10])
    """

    state_axes: ClassVar[dict[str, tuple[int, ...]]] = {'weight': (1,)}

    def __init__(self, state_dim: int, conv: nn.Conv2d | int, read_init: str = 'zero') -> None:
        require(read_init in ('zero', 'kaiming'), 'read_init', read_init, "'zero' or 'kaiming'")
        self.read_init = read_init  # the base class initialises in its constructor
        if isinstance(conv, int):
            super().__init__(state_dim, conv, 1, bias=False)
            return
        super().__init__(
            state_dim,
            conv.out_channels,
            conv.kernel_size,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            bias=False,
        )

    def reset_parameters(self) -> None:
        """Sets the weight to its start, at construction too."""
        if self.read_init == 'zero':
            nn.init.zeros_(self.weight)
        else:
            nn.init.kaiming_normal_(self.weight, mode='fan_out', nonlinearity='relu')

    def forward(self, h: Tensor, out: Tensor | None = None) -> Tensor:
        """Reads the state.

        Args:
            h (Tensor): State, (batch, N, H, W).
            out (Tensor, optional): What the block's first convolution made, which may be overwritten.

        Returns:
            Tensor: The read, plus ``out`` if it is given, (batch, channels, H', W').
        """
        if out is None:
            return self.contribution(h)
        return out if self._accumulate(h, out) else self.contribution(h).add_(out)

    @torch.no_grad()
    def scale(self, factor: Tensor) -> None:
        """Scales the channels of what is read, for good, as the folding of a norm behind it does."""
        weight = self.weight * factor.view(-1, 1, 1, 1)
        self.register_parameter('weight', nn.Parameter(weight, self.weight.requires_grad))

    def contribution(self, h: Tensor) -> Tensor:
        """What is read, (batch, channels, H', W'), without the block's own convolution."""
        if self.kernel_size == (1, 1):
            # The same numbers as a strided 1 × 1 convolution, which corrupts the heap on the CPU in torch 2.13 (its
            # backward pass, channels last, fewer than 8 channels, no AVX-512).
            return F.conv2d(h[..., :: self.stride[0], :: self.stride[1]], self.weight)
        return super().forward(h)

    def _accumulate(self, h: Tensor, out: Tensor) -> bool:
        """Adds the read to ``out`` by a matrix product that accumulates, where there is one; whether there was.

        That is one pass over ``out`` instead of three. With out= rather than in place, as FLOP counters don't know the
        in-place forms.
        """
        plain = self.kernel_size == self.stride == (1, 1) and out.dtype == h.dtype == self.weight.dtype
        if not plain or torch.is_grad_enabled() or is_compiling() or torch.jit.is_tracing():
            return False
        weight = self.weight.flatten(1)
        if out.is_contiguous():
            maps = out.flatten(2)  # a view of what is contiguous
            torch.baddbmm(maps, weight.expand(len(h), -1, -1), h.flatten(2), out=maps)
        elif out.is_contiguous(memory_format=torch.channels_last):
            rows = out.permute(0, 2, 3, 1).flatten(0, 2)
            torch.addmm(rows, h.permute(0, 2, 3, 1).flatten(0, 2), weight.t(), out=rows)
        else:
            return False
        return True

    def init_weights(self) -> None:
        """Called by mmengine after a parent's ``init_cfg``, which would otherwise have the last word."""
        self.reset_parameters()


class S6LAMapCell(BaseModule):
    r"""Writes a block's output to the state, selectively: the write step of S6LA for feature maps.

    With the block's output :math:`X` and the state :math:`h` (at the resolution of :math:`X`)::

        u = RMSNorm(W_u X)        Δ = softplus(W_Δ u + b_Δ)        B = W_B u
        h' = exp(Δ A) ⊙ h + Δ ⊙ B ⊙ u                              ('euler'; see s6la_mm.ops)

    The norm runs over the N channels of each pixel. It bounds the product B ⊙ u, which is quadratic in the features.
    ``A_log``, ``dt_bias`` and the norm's gain must not be weight-decayed (see ``S6LAOptimWrapperConstructor``).

    Args:
        in_channels (int): Channels D of the block's output.
        state_dim (int): Channels N of the state. Defaults to 32.
        discretization (str): ``'euler'`` or ``'zoh'``. Defaults to ``'euler'``.
        input_norm (str, optional): ``'rms'`` or None. Defaults to ``'rms'``.
        dt_range (tuple[float, float]): softplus(b_Δ) starts log-uniform in this range. Defaults to (1e-3, 1e-1).

    Raises:
        ValueError: If an argument is not one of its allowed values.

    Example:
        >>> import torch
        >>> cell = S6LAMapCell(in_channels=256, state_dim=32)
        >>> cell(torch.rand(2, 256, 14, 14), torch.zeros(2, 32, 14, 14)).shape
        torch.Size([2, 32, 14, 14])
    """

    state_axes: ClassVar[dict[str, tuple[int, ...]]] = {
        'in_proj.weight': (0,),
        'input_norm.weight': (0,),
        'dt_proj.weight': (0, 1),
        'B_proj.weight': (0, 1),
        'A_log': (0,),
        'dt_bias': (0,),
    }
    not_decayed = ('A_log', 'dt_bias', 'input_norm')

    def __init__(
        self,
        in_channels: int,
        state_dim: int = 32,
        discretization: str = 'euler',
        input_norm: str | None = 'rms',
        dt_range: tuple[float, float] = (1e-3, 1e-1),
    ) -> None:
        super().__init__()
        check_cell_options(state_dim, discretization, input_norm, dt_range)
        self.discretization = discretization
        self.dt_range = dt_range
        self.in_proj = nn.Conv2d(in_channels, state_dim, 1, bias=False)
        self.input_norm = RMSNorm(state_dim, eps=1e-6) if input_norm == 'rms' else None
        self.dt_proj = nn.Conv2d(state_dim, state_dim, 1, bias=False)
        self.B_proj = nn.Conv2d(state_dim, state_dim, 1, bias=False)
        self.A_log = nn.Parameter(torch.empty(state_dim))
        self.dt_bias = nn.Parameter(torch.empty(state_dim))
        reset_state_parameters(self.A_log, self.dt_bias, dt_range)

    def init_weights(self) -> None:
        """Initialises the cell; a parent's ``init_cfg`` (Kaiming on every Conv2d) does not get the last word."""
        super().init_weights()
        for proj in (self.in_proj, self.dt_proj, self.B_proj):
            proj.reset_parameters()
        if self.input_norm is not None:
            self.input_norm.reset_parameters()
        reset_state_parameters(self.A_log, self.dt_bias, self.dt_range)

    def compose(self) -> tuple[Tensor, Tensor]:
        """What the writes of one forward pass share: A, (N,), and the joint weight of the projections to Δ and B.

        RMSNorm(u) is u / rms(u) ⊙ gain, and the op divides. The gain is taken into the weight, (2 N, N, 1, 1): it
        scales what the projections read, and what B multiplies.
        """
        A = -at_least_float32(self.A_log).exp()
        if self.input_norm is None:
            return A, torch.cat((self.dt_proj.weight, self.B_proj.weight))
        gain = self.input_norm.weight
        read_gain, write_gain = gain.view(1, -1, 1, 1), gain.view(-1, 1, 1, 1)
        return A, torch.cat((self.dt_proj.weight, self.B_proj.weight * write_gain)) * read_gain

    def project_with(self, conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Computes ``conv(x)``, for a block that reads ``x`` next, and ``in_proj(x)`` as one convolution.

        In training that is one gradient of ``x`` less to compute, and to add to the others. In evaluation it gains
        nothing, and the following batch norm would copy its half of the result.

        Args:
            conv (nn.Module): The first layer of the next block.
            x (Tensor): The block's output, (batch, D, H, W).

        Returns:
            tuple: ``conv(x)`` and ``in_proj(x)``; or None twice in evaluation, where ``conv`` is not a plain 1 × 1
            convolution, and where ``x`` is so small that the copy of the weights would cost what it saves.
        """
        is_plain = type(conv) is nn.Conv2d and conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1
        if not (self.training and is_plain and conv.bias is None):
            return None, None
        if _has_hooks(conv) or _has_hooks(self.in_proj):
            return None, None
        weights = conv.weight, self.in_proj.weight
        if weights[0].requires_grad != weights[1].requires_grad:  # else a frozen one would have a graph
            return None, None
        if 4 * sum(weight.numel() for weight in weights) > x.numel():
            return None, None
        out, u = F.conv2d(x, torch.cat(weights)).split([len(weight) for weight in weights], dim=1)
        # A copy, as the backward pass needs u and would keep the whole tensor for it.
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        return out, u.clone(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    def forward(
        self, x: Tensor, h: Tensor, composed: tuple[Tensor, Tensor] | None = None, u: Tensor | None = None
    ) -> Tensor:
        """Returns the next state.

        Args:
            x (Tensor): The block's output, (batch, D, H, W).
            h (Tensor): State, (batch, N, H, W); it keeps its own dtype under autocast.
            composed (tuple[Tensor, Tensor], optional): The result of :meth:`compose`, for several writes in a row.
            u (Tensor, optional): ``in_proj(x)``, where :meth:`project_with` has made it.

        Returns:
            Tensor: Next state, (batch, N, H, W), in the dtype of ``h``.
        """
        A, weight = self.compose() if composed is None else composed
        if u is None:
            u = self.in_proj(x)
        dt, B = F.conv2d(u, weight).chunk(2, dim=1)
        return selective_update(
            h,
            u,
            dt,
            A,
            B,
            dt_bias=self.dt_bias,
            dt_softplus=True,
            discretization=self.discretization,
            norm_eps=None if self.input_norm is None else self.input_norm.eps,
        )

    @torch.no_grad()
    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """How far an output would be written, to look at: training computes the same inside the op.

        Args:
            x (Tensor): The block's output, (batch, D, H, W).

        Returns:
            tuple[Tensor, Tensor]: Step sizes Δ, and decays exp(Δ A) of the state, both (batch, N, H, W), float32.
        """
        u = at_least_float32(self.in_proj(x))
        if self.input_norm is not None:
            u = rms_norm(self.input_norm, u.movedim(1, -1)).movedim(-1, 1)
        dt = F.conv2d(u, self.dt_proj.weight.to(u.dtype)) + self.dt_bias.view(-1, 1, 1)
        dt = F.softplus(dt)
        return dt, torch.exp(-self.A_log.exp().view(-1, 1, 1) * dt)


def _has_hooks(layer: nn.Module) -> bool:
    """Whether somebody watches or changes what a layer computes, as pruning does: then it has to be called."""
    kinds = ('_forward_pre_hooks', '_forward_hooks', '_backward_pre_hooks', '_backward_hooks')
    return any(getattr(layer, kind) for kind in kinds)


def pool_state(h: Tensor, stride: int, padded: bool = True) -> Tensor:
    """Average-pools the state (batch, N, H, W) to what a convolution of that stride makes of H × W.

    Windows lie where the strided convolution samples. One that pads makes ⌈H / stride⌉ of H, and the last window is cut
    at the border; one that does not makes ⌊H / stride⌋, and the rest is left out.
    """
    if stride == 1:
        return h
    return F.avg_pool2d(h, stride, stride, ceil_mode=padded, count_include_pad=False)
