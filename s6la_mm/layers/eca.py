"""Efficient channel attention as a plugin layer for mmdet's ``plugins`` option."""

from __future__ import annotations

import math

from mmengine.registry import MODELS
from torch import Tensor, nn

from .options import is_positive, require


def adaptive_kernel_size(channels: int) -> int:
    """Size of a 1D convolution over channels (ECA, arXiv 1910.03151, eq. 12): the odd number after (log2(C) + 1) / 2.

    Example:
        >>> [adaptive_kernel_size(channels) for channels in (64, 128, 512, 1024, 2048)]
        [3, 5, 5, 5, 7]
    """
    size = int((math.log2(channels) + 1) / 2)
    return size if size % 2 else size + 1


@MODELS.register_module()
class ECALayer(nn.Module):
    """Efficient channel attention (Wang et al., CVPR 2020, arXiv 1910.03151).

    Each channel is scaled by a sigmoid of a 1-D convolution over the globally averaged neighbouring channels; there
    is no reduction, so the layer has ``kernel_size`` parameters.

    Args:
        in_channels (int): Channels C of the feature map.
        kernel_size (int, optional): Odd number of neighbouring channels. Defaults to the paper's eq. 12: the odd
            number that follows from (log2(C) + 1) / 2.

    Raises:
        ValueError: If ``kernel_size`` is not odd and positive.

    Example:
        >>> import torch
        >>> ECALayer(256)(torch.rand(2, 256, 7, 7)).shape
        torch.Size([2, 256, 7, 7])
        >>> plugins = [dict(cfg=dict(type='ECALayer'), position='after_conv3')]  # in every bottleneck
    """

    _abbr_ = 'eca'

    def __init__(self, in_channels: int, kernel_size: int | None = None) -> None:
        super().__init__()
        if kernel_size is None:
            kernel_size = adaptive_kernel_size(in_channels)
        is_odd = is_positive(kernel_size) and kernel_size % 2 == 1
        require(is_odd, 'kernel_size', kernel_size, 'a positive odd number')
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Scales the channels of ``x``, (batch, C, H, W)."""
        weight = self.conv(x.mean(dim=(2, 3)).unsqueeze(1)).sigmoid()
        return x * weight.transpose(1, 2).unsqueeze(-1)
