"""S6LA-ConvNeXt: mmpretrain's ConvNeXt (V1 and V2) with a state that runs through the depth of the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmpretrain.models.backbones import ConvNeXt
from mmpretrain.models.backbones.convnext import ConvNeXtBlock
from torch import Tensor, nn

from ..layers import STATE_LAYERS, StateRead, pool_state
from ..layers.options import is_index, require
from .families.convnext import CONVNEXT
from .map_state import MapState, MapStateMixin


class StateConvNeXtBlock(ConvNeXtBlock):
    """mmpretrain's ConvNeXtBlock, reading the state behind its norm; without a state it is the plain block."""

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        """Computes the block's output, (batch, D, H, W), from its input and the state, (batch, N, H, W)."""
        if h is None:
            return super().forward(x)
        out = self.depthwise_conv(x)
        # Linear layers want the channels last; nothing is copied for the read, which adds to a view.
        layout = 'channel_last' if self.linear_pw_conv else 'channel_first'
        if self.linear_pw_conv:
            out = self.norm(out.permute(0, 2, 3, 1), data_format=layout).permute(0, 3, 1, 2)
            out = self.read(h.contiguous(memory_format=torch.channels_last), out).permute(0, 2, 3, 1)
        else:
            out = self.read(h, self.norm(out, data_format=layout))
        out = self.act(self.pointwise_conv1(out))
        if self.grn is not None:
            out = self.grn(out, data_format=layout)
        out = self.pointwise_conv2(out)
        if self.linear_pw_conv:
            out = out.permute(0, 3, 1, 2)
        if self.gamma is not None:
            out = out.mul(self.gamma.view(1, -1, 1, 1))
        return x + self.drop_path(out)


class S6LAConvNeXt(MapStateMixin, ConvNeXt):
    """ConvNeXt with selective state space layer aggregation (S6LA, arXiv 2502.10463).

    A state h of ``state_dim`` channels is created in ``forward``, read by every block and written by one cell per stage
    after every block, except the last one, which nobody reads after; between stages it is average-pooled where the
    downsampling convolution samples. The reads start at zero, so that a new network computes what the plain network
    computes; all parameters of the plain network keep their names and shapes, and plain checkpoints load through
    ``init_cfg``.

    Where a block reads: the definition lets a block's first layer see [x, h]. Here that is a 7 × 7 depthwise
    convolution, which mixes no channels: beside it, a read would have to be a dense 7 × 7 convolution, 49 N D
    multiply-adds per pixel where the whole block has 8 D² + 49 D. The first layer that mixes channels is the first
    pointwise one. The read, 1 × 1 from N to D channels, is added to its input, behind the norm: pw1(z + W h) is pw1 on
    the concatenation [z, h], with the weights pw1 and pw1 W. That is N D per pixel, a quarter of a read beside the 4 D
    outputs of that layer, and no loss of rank as long as N ≤ D. Before the norm, what is read would change the scale of
    x; behind the block it would pass the non-linearity by. Drop path drops the read with its branch, layer scale scales
    it as it does the branch, and GRN normalises over what both made.

    Every option of :class:`mmpretrain.models.ConvNeXt` keeps its meaning: ``use_grn``, ``linear_pw_conv``,
    ``layer_scale_init_value``, ``drop_path_rate``, ``gap_before_final_norm`` ...; ``frozen_stages`` freezes the reads
    and cells of the frozen stages with them, and ``with_cp`` covers downsampling, block, read and write.

    Args:
        arch (str | dict): ``'atto'`` ... ``'huge'``, or a dict with depths and channels. Defaults to ``'tiny'``.
        out_indices (Sequence[int] | int): Stages to output, from the end where negative. Defaults to -1.
        frozen_stages (int): Number of stages to freeze. Defaults to 0.
        with_cp (bool): Save memory by computing layers again in the backward pass. Defaults to False.
        **kwargs: Options of the state, see :class:`MapStateMixin` (``state_dim``, ``discretization``, ``input_norm``,
            ``dt_range``, ``shared_cell``, ``read_init``, ``learned_initial_state``, ``stage_with_state``,
            ``out_state``); and of :class:`mmpretrain.models.ConvNeXt`.

    Raises:
        ValueError: If an option has a value that is not allowed, or an image is too small; the message names both.

    Example:
        >>> import torch
        >>> backbone = S6LAConvNeXt('atto', out_indices=(0, 3), gap_before_final_norm=False).eval()
        >>> for out in backbone(torch.rand(1, 3, 70, 101)):
        ...     print(tuple(out.shape))
        (1, 40, 17, 25)
        (1, 320, 2, 3)
    """

    family = CONVNEXT

    def __init__(
        self,
        arch: str | dict = 'tiny',
        *,
        out_indices: Sequence[int] | int = -1,
        frozen_stages: int = 0,
        with_cp: bool = False,
        **kwargs: Any,
    ) -> None:
        if isinstance(arch, str):
            require(arch in self.arch_settings, 'arch', arch, f'a dict or one of {tuple(self.arch_settings)}')
        else:
            is_arch = isinstance(arch, dict) and {'depths', 'channels'} <= set(arch)
            require(is_arch, 'arch', arch, "a name or a dict with 'depths' and 'channels'")
        stages = len((self.arch_settings[arch] if isinstance(arch, str) else arch)['depths'])
        indices = [out_indices] if isinstance(out_indices, int) else out_indices
        chosen = bool(indices) and all(is_index(i, -stages, stages - 1) for i in indices)
        require(chosen, 'out_indices', out_indices, f'one or more stages from {-stages} to {stages - 1}')
        require(is_index(frozen_stages, -1, stages), 'frozen_stages', frozen_stages, f'from -1 to {stages}')
        self.with_cp = with_cp  # of the whole layer, so not of the blocks
        super().__init__(
            arch=arch, out_indices=[i % stages for i in indices], frozen_stages=frozen_stages, with_cp=False, **kwargs
        )

    def _add_read(self, block: ConvNeXtBlock, channels: int) -> None:
        block.__class__ = StateConvNeXtBlock  # mmpretrain has no option for the class of the blocks
        block.read = StateRead(self.state_dim, channels, self.read_init)

    def _stages(self) -> list[tuple[str, nn.Sequential, int]]:
        return [(f'stage{i}', stage, self.channels[i]) for i, stage in enumerate(self.stages)]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the features.

        Args:
            x (Tensor): Images, (batch, in_channels, H, W); the deepest map must have a pixel at least.

        Returns:
            tuple[Tensor, ...]: Of the stages in ``out_indices`` maps, (batch, D, H', W'), or with
            ``gap_before_final_norm`` their normalised means, (batch, D); then the state if ``out_state``.

        Raises:
            ValueError: If the image is too small.
        """
        smallest = self.downsample_layers[0][0].stride[0] * 2 ** (self.num_stages - 1)
        if min(x.shape[2:]) < smallest:
            size = ' x '.join(map(str, x.shape[2:]))
            raise ValueError(f'images of {size} pixels are too small: use {smallest} x {smallest} or more')
        x = self.downsample_layers[0](x)
        state = self._first_state(x)
        outs = []
        for stage, blocks in enumerate(self.stages):
            x = self._run_stage(stage, blocks, x, state)
            if stage in self.out_indices:
                gap = x.mean((2, 3), keepdim=True) if self.gap_before_final_norm else x
                out = getattr(self, f'norm{stage}')(gap)
                outs.append(out.flatten(1) if self.gap_before_final_norm else out)
        return self._outputs(outs, x, state)

    def _layer(self, state: MapState, stage: int, index: int, block: nn.Module, x: Tensor, *args: Any) -> Tensor:
        downsample = self.downsample_layers[stage] if stage and index == 0 else None
        return super()._layer(state, stage, index, block, x, downsample)

    def _block(
        self, block: ConvNeXtBlock, x: Tensor, h: Tensor, out: None, downsample: nn.Module | None
    ) -> tuple[Tensor, Tensor]:
        if downsample is not None:
            x, h = downsample(x), pool_state(h, 2, padded=False)
        return (block(x, h) if isinstance(block, StateConvNeXtBlock) else block(x)), h

    def _init_plain(self, loads_checkpoint: bool) -> None:
        """mmpretrain's initialisation, which sets every layer of its types and does not ask those of S6LA."""
        super()._init_plain(loads_checkpoint)
        for module in self.modules():
            if isinstance(module, STATE_LAYERS):
                module.init_weights()

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter and number of depths, for layer-wise learning-rate decay.

        Args:
            param_name (str): Name of the parameter.
            prefix (str): Prefix of the backbone's parameters in the model. Defaults to ''.

        Returns:
            tuple[int, int]: The base class's answer. A cell has the depth of its stage's last block, the initial state
            that of the stem.
        """
        module, _, rest = param_name.removeprefix(prefix).partition('.')
        if param_name.startswith(prefix) and module == 'initial_state':
            return 0, super().get_layer_depth('')[1]
        if param_name.startswith(prefix) and module == 'cells':
            stage = int(rest.partition('.')[0].partition('_')[0].removeprefix('stage'))
            param_name = f'{prefix}stages.{stage}.{self.depths[stage] - 1}.read.weight'
        return super().get_layer_depth(param_name, prefix)

    def optional_keys(self) -> tuple[str, ...]:
        """The norms of the outputs: a classifier has that of the last stage only."""
        return tuple(f'norm{i}.' for i in self.out_indices)
