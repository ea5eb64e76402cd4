"""RLA-ResNet, a relative of S6LA-ResNet: recurrent layer aggregation carries a small map through depth, too."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.utils.checkpoint as cp
from mmcv.cnn import build_norm_layer
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from mmdet.models.layers import ResLayer
from mmengine.model import BaseModule, ModuleDict
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..checkpoint import InputChannelsMixin
from ..layers import pool_state
from ..layers.options import is_positive, require
from .stages import Carried, StateStage
from .train_mode import TrainReturnsSelf


def residual_branch(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    """What a block of mmdet's ResNet adds to its shortcut, (batch, D, H, W)."""
    last = 3 if isinstance(block, Bottleneck) else 2
    for i in range(1, last + 1):
        x = getattr(block, f'norm{i}')(getattr(block, f'conv{i}')(x))
        if i < last:
            x = block.relu(x)
        if getattr(block, 'with_plugins', False):
            x = block.forward_plugin(x, getattr(block, f'after_conv{i}_plugin_names'))
    return x


class _RLABlock(nn.Module):
    """A residual block whose first convolution sees [x, h], and which gives its residual branch away, too."""

    def __init__(self, inplanes: int, *args: Any, hidden_channels: int, **kwargs: Any) -> None:
        super().__init__(inplanes + hidden_channels, *args, **kwargs)

    def forward(self, x: Tensor, h: Tensor, branch: Carried) -> Tensor:
        """Computes the block's output, (batch, D, H, W), and puts what it added to its shortcut in ``branch``."""
        branch.h = residual_branch(self, torch.cat((x, h), dim=1))
        return self.relu(branch.h + (x if self.downsample is None else self.downsample(x)))


class RLABasicBlock(_RLABlock, BasicBlock):
    """mmdet's BasicBlock, reading the hidden map."""


class RLABottleneck(_RLABlock, Bottleneck):
    """mmdet's Bottleneck, reading the hidden map."""


class RLACell(BaseModule):
    """What the blocks of a stage share: h' = W_h * tanh(BN_t(h + W_y y)), with a norm of its own for every block t.

    Args:
        in_channels (int): Channels D of the residual branch y.
        hidden_channels (int): Channels of the hidden map h.
        num_blocks (int): Number of blocks that write.
        norm_cfg (dict): Norm of the hidden map.
    """

    def __init__(self, in_channels: int, hidden_channels: int, num_blocks: int, norm_cfg: dict) -> None:
        super().__init__()
        self.conv_out = nn.Conv2d(in_channels, hidden_channels, 1, bias=False)
        self.norms = nn.ModuleList(build_norm_layer(norm_cfg, hidden_channels)[1] for _ in range(num_blocks))
        self.recurrent_conv = nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1, bias=False)

    def forward(self, y: Tensor, h: Tensor, block: int) -> Tensor:
        """Returns the next hidden map, (batch, hidden_channels, H, W)."""
        return self.recurrent_conv(torch.tanh(self.norms[block](h + self.conv_out(y))))


@MODELS.register_module()
class RLAResNet(TrainReturnsSelf, InputChannelsMixin, ResNet):
    """ResNet with recurrent layer aggregation (Zhao et al., NeurIPS 2021, arXiv 2110.11852).

    A hidden map h starts at zero. Block t sees the concatenation [x, h] and adds its residual branch y to x, as ever;
    h is average-pooled where the block halves the resolution, and then ``h = W_h * tanh(BN_t(h + W_y y))`` with a
    1 × 1 convolution W_y and a 3 × 3 convolution W_h that the blocks of a stage share. The network's last block does
    not write: only a classifier would read it, and a parameter without a gradient breaks distributed training.

    Args:
        depth (int): One of 18, 34, 50, 101, 152.
        hidden_channels (int): Channels of the hidden map. Defaults to 32.
        **kwargs: Options of :class:`mmdet.models.ResNet`.

    Raises:
        ValueError: If ``hidden_channels`` is not a positive integer.

    Example:
        >>> import torch
        >>> backbone = RLAResNet(depth=18).eval()
        >>> for out in backbone(torch.rand(1, 3, 33, 65)):
        ...     print(tuple(out.shape))
        (1, 64, 9, 17)
        (1, 128, 5, 9)
        (1, 256, 3, 5)
        (1, 512, 2, 3)
    """

    def __init__(self, depth: int, *, hidden_channels: int = 32, **kwargs: Any) -> None:
        require(is_positive(hidden_channels), 'hidden_channels', hidden_channels, 'a positive integer')
        self.hidden_channels = hidden_channels  # the base class builds the stages in its constructor
        super().__init__(depth, **kwargs)
        self.cells = ModuleDict()
        for stage, name in enumerate(self.res_layers):
            writers = self.stage_blocks[stage] - (stage == self.num_stages - 1)
            channels = self.base_channels * 2**stage * self.block.expansion
            self.cells[name] = RLACell(channels, hidden_channels, writers, self.norm_cfg)
        self._freeze_stages()

    def make_res_layer(self, block: type, **kwargs: Any) -> StateStage:
        """Builds a stage out of blocks that read the hidden map."""
        kwargs.update(with_cp=False)  # the forward of the backbone checkpoints, the write included
        block = {BasicBlock: RLABasicBlock, Bottleneck: RLABottleneck}[block]
        return StateStage(*ResLayer(block=block, hidden_channels=self.hidden_channels, **kwargs))

    def _freeze_stages(self) -> None:
        super()._freeze_stages()
        if hasattr(self, 'cells'):  # the base constructor calls this before they exist
            for name in self.res_layers[: max(self.frozen_stages, 0)]:
                self.cells[name].eval().requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the feature maps of the stages in ``out_indices`` from images (batch, in_channels, H, W)."""
        x = self.stem(x) if self.deep_stem else self.relu(self.norm1(self.conv1(x)))
        x = self.maxpool(x)
        h = x.new_zeros(x.shape[0], self.hidden_channels, *x.shape[2:])
        if x.is_contiguous(memory_format=torch.channels_last):  # a concatenation of two layouts would be contiguous
            h = h.to(memory_format=torch.channels_last)
        hidden = Carried(h)
        outs = []
        for stage, name in enumerate(self.res_layers):
            x = getattr(self, name)(x, partial(self._layer, hidden, self.cells[name]))
            if stage in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def _layer(self, hidden: Carried, cell: RLACell, index: int, block: nn.Module, x: Tensor) -> Tensor:
        """One layer of the network, checkpointed as a whole if ``with_cp``."""
        if self.with_cp and torch.is_grad_enabled():
            x, hidden.h = cp.checkpoint(self._step, block, cell, index, x, hidden.h, use_reentrant=False)
        else:
            x, hidden.h = self._step(block, cell, index, x, hidden.h)
        return x

    @staticmethod
    def _step(block: nn.Module, cell: RLACell, index: int, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The block reads the hidden map, and what it adds to x is written there."""
        branch = Carried()
        x = block(x, h, branch)
        h = pool_state(h, block.stride)
        return x, (cell(branch.h, h, index) if index < len(cell.norms) else h)
