"""MRLA-ResNet, a relative of S6LA-ResNet: each block looks back at the layers before it by attention."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.utils.checkpoint as cp
from mmcv.cnn import build_norm_layer
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from mmdet.models.layers import ResLayer
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..checkpoint import InputChannelsMixin
from ..layers.eca import adaptive_kernel_size
from ..layers.options import is_positive, require
from .rla_resnet import residual_branch
from .train_mode import TrainReturnsSelf


class LightLayerAttention(BaseModule):
    r"""Multi-head recurrent layer attention, light version (arXiv 2302.03985, equation 6).

    :math:`O^t = \lambda \odot O^{t-1} + \sigma(Q^t \cdot K^t / \sqrt{d})\, V^t`, head by head: Q and K are 1D
    convolutions over the channels of the block's mean, V a 3 × 3 depthwise convolution of its output.

    In the authors' ResNets :math:`O^{t-1}` is the block's shortcut, as the attention's output has gone into it, and so
    it is here. The shortcut has the block's resolution and channels: no map has to be carried beside it.

    Args:
        channels (int): Channels D of the block's output, a multiple of ``head_channels``.
        head_channels (int): Channels d of a head. Defaults to 32.
        kernel_size (int, optional): Of the 1D convolutions, odd. Defaults to what ECA gives for the channels, as in
            the authors' code.

    Raises:
        ValueError: If ``channels`` is no multiple of ``head_channels``, or ``kernel_size`` is even.

    Example:
        >>> import torch
        >>> attention = LightLayerAttention(64)
        >>> attention(torch.rand(2, 64, 9, 17), torch.rand(2, 64, 9, 17)).shape
        torch.Size([2, 64, 9, 17])
    """

    def __init__(self, channels: int, head_channels: int = 32, kernel_size: int | None = None) -> None:
        super().__init__()
        if kernel_size is None:
            kernel_size = adaptive_kernel_size(channels)
        divides = is_positive(head_channels) and channels % head_channels == 0
        require(divides, 'head_channels', head_channels, f'a divisor of the {channels} channels')
        require(is_positive(kernel_size) and kernel_size % 2 == 1, 'kernel_size', kernel_size, 'odd')
        self.head_channels = head_channels
        self.query = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.key = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.value = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.decay = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor, previous: Tensor) -> Tensor:
        """Computes O of this block from its output and from O of the block before, all (batch, D, H, W)."""
        means = x.mean((2, 3)).unsqueeze(1)
        query, key = (proj(means).view(len(x), -1, self.head_channels) for proj in (self.query, self.key))
        weights = torch.sigmoid((query * key).sum(-1) / math.sqrt(self.head_channels))
        weights = weights.repeat_interleave(self.head_channels, dim=1)[..., None, None]
        return self.value(x) * weights + self.decay.view(-1, 1, 1) * previous


class _MRLABlock(nn.Module):
    """A residual block with layer attention behind it."""

    def __init__(self, *args: Any, head_channels: int, norm_cfg: dict, **kwargs: Any) -> None:
        super().__init__(*args, norm_cfg=norm_cfg, **kwargs)
        last = self.norm3 if isinstance(self, Bottleneck) else self.norm2
        self.attention = LightLayerAttention(last.num_features, head_channels)
        self.attention_norm = build_norm_layer(norm_cfg, last.num_features)[1]

    def forward(self, x: Tensor) -> Tensor:
        """Computes the block's output, (batch, D, H, W)."""
        if self.with_cp and torch.is_grad_enabled():
            return cp.checkpoint(self._attend, x, use_reentrant=False)
        return self._attend(x)

    def _attend(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(residual_branch(self, x) + shortcut)
        return out + self.attention_norm(self.attention(out, shortcut))


class MRLABasicBlock(_MRLABlock, BasicBlock):
    """mmdet's BasicBlock with layer attention."""


class MRLABottleneck(_MRLABlock, Bottleneck):
    """mmdet's Bottleneck with layer attention."""


@MODELS.register_module()
class MRLAResNet(TrainReturnsSelf, InputChannelsMixin, ResNet):
    """ResNet with multi-head recurrent layer attention, light version (Fang et al., ICLR 2023, arXiv 2302.03985).

    Behind each residual block stands :class:`LightLayerAttention` with a batch norm, and its output is added. All
    parameters of the plain network keep their names and shapes; no start is neutral, as in the paper.

    Args:
        depth (int): One of 18, 34, 50, 101, 152.
        head_channels (int): Channels of a head. Defaults to 32.
        **kwargs: Options of :class:`mmdet.models.ResNet`.

    Raises:
        ValueError: If ``head_channels`` does not divide the channels of every block.

    Example:
        >>> import torch
        >>> backbone = MRLAResNet(depth=18).eval()
        >>> for out in backbone(torch.rand(1, 3, 33, 65)):
        ...     print(tuple(out.shape))
        (1, 64, 9, 17)
        (1, 128, 5, 9)
        (1, 256, 3, 5)
        (1, 512, 2, 3)
    """

    def __init__(self, depth: int, *, head_channels: int = 32, **kwargs: Any) -> None:
        self.head_channels = head_channels  # the base class builds the stages in its constructor
        super().__init__(depth, **kwargs)

    def make_res_layer(self, block: type, **kwargs: Any) -> ResLayer:
        """Builds a stage out of blocks with layer attention."""
        block = {BasicBlock: MRLABasicBlock, Bottleneck: MRLABottleneck}[block]
        return ResLayer(block=block, head_channels=self.head_channels, **kwargs)
