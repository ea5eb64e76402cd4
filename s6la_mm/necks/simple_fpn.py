"""The simple feature pyramid: what a plain ViT needs to feed detectors that expect an FPN."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import BaseModule, ModuleList
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..environment import require_mmpretrain


@MODELS.register_module()
class SimpleFPN(BaseModule):
    """Feature pyramid out of the last map of a plain ViT (ViTDet, Li et al., ECCV 2022, arXiv 2203.16527, section 3).

    The map, of stride 16 say, is brought to 4, 2, 1 and ½ times its resolution by transposed convolutions or max
    pooling; a 1 × 1 and a 3 × 3 convolution, each with a norm, follow at every level. mmseg's Feature2Pyramid makes the
    same scales, but keeps the backbone's channels, and mmseg need not be installed for detection.

    Args:
        in_channels (int): Channels D of the map, a multiple of 4.
        out_channels (int): Channels of every level. Defaults to 256.
        num_outs (int): Levels; beyond four, each halves the one before by max pooling. Defaults to 5.
        norm_cfg (dict): Norm after each convolution. Defaults to mmpretrain's layer norm over channels.
        init_cfg (dict | list[dict], optional): Initialization config. Defaults to None.

    Raises:
        ValueError: If ``in_channels`` or ``num_outs`` is not allowed.
        ImportError: If ``norm_cfg`` is mmpretrain's and mmpretrain is missing.

    Example:
        >>> import torch
        >>> neck = SimpleFPN(in_channels=192)
        >>> for out in neck((torch.rand(1, 192, 14, 21),)):
        ...     print(tuple(out.shape))
        (1, 256, 56, 84)
        (1, 256, 28, 42)
        (1, 256, 14, 21)
        (1, 256, 7, 11)
        (1, 256, 4, 6)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        num_outs: int = 5,
        norm_cfg: dict = dict(type='mmpretrain.LN2d', eps=1e-6),  # noqa: B006 (never changed)
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if in_channels < 4 or in_channels % 4:
            raise ValueError(f'in_channels={in_channels} must be a positive multiple of 4')
        if num_outs < 4:
            raise ValueError(f'num_outs={num_outs} must be 4 or more')
        if str(norm_cfg['type']).startswith('mmpretrain.'):
            require_mmpretrain(f'SimpleFPN with {norm_cfg=}')
        self.num_outs = num_outs
        half, quarter = in_channels // 2, in_channels // 4
        self.scales = ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(in_channels, half, 2, stride=2),
                    build_norm_layer(norm_cfg, half)[1],
                    nn.GELU(),
                    nn.ConvTranspose2d(half, quarter, 2, stride=2),
                ),
                nn.ConvTranspose2d(in_channels, half, 2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(2, stride=2, ceil_mode=True),  # half of one row is one row
            ]
        )
        conv = dict(out_channels=out_channels, norm_cfg=norm_cfg, act_cfg=None)
        self.convs = ModuleList(
            [
                nn.Sequential(
                    ConvModule(channels, kernel_size=1, **conv),
                    ConvModule(out_channels, kernel_size=3, padding=1, **conv),
                )
                for channels in (quarter, half, in_channels, in_channels)
            ]
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Makes the pyramid.

        Args:
            inputs (Sequence[Tensor]): Maps of the backbone, (batch, D, H, W); the last one is used.

        Returns:
            tuple[Tensor, ...]: ``num_outs`` levels (batch, out_channels, ·, ·), the finest first.
        """
        outs = [conv(scale(inputs[-1])) for scale, conv in zip(self.scales, self.convs)]
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], kernel_size=1, stride=2))
        return tuple(outs)
