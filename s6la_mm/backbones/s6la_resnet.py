"""S6LA-ResNet: mmdet's ResNet and ResNeXt with a state that runs through the depth of the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmdet.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from mmdet.models.backbones.resnext import Bottleneck as ResNeXtBottleneck
from mmdet.models.layers import ResLayer
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers import S6LAMapCell, StateRead, pool_state
from ..layers.options import is_index, is_positive, require
from .families.resnet import RESNET
from .map_state import MapStateMixin


class _StateBlock(nn.Module):
    """What a residual block gains: a read of the state beside its first convolution."""

    def __init__(self, *args: Any, state_dim: int, read_init: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.read = StateRead(state_dim, self.conv1, read_init)
        self.read_is_fused = False

    def forward(self, x: Tensor, h: Tensor, out: Tensor | None = None) -> Tensor:
        """Computes the block's output; ``out`` is ``conv1(x)``, where the caller has it."""
        norm1 = self.norm1
        if isinstance(norm1, nn.Identity) and not self.read_is_fused:
            raise RuntimeError(
                'norm1 of this block has been folded into conv1, but not into the read of the state, which it scales '
                'too: fold it with fuse_conv_bn of mmcv.cnn'
            )
        out = self.conv1(x) if out is None else out
        out = self.relu(norm1(self.read(h, out)))
        out = self._after_conv1(out)
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """As of every module; mmcv's ``fuse_conv_bn`` replaces them on its way, and then the read is scaled, too.

        It folds the norm behind conv1 into that. The norm is of the sum of conv1 and read: the read has its share.
        """
        norm1 = self.norm1
        yield from super().named_children()
        if isinstance(self.norm1, nn.Identity) and not isinstance(norm1, nn.Identity):
            self.read.scale((norm1.running_var + norm1.eps).rsqrt() * norm1.weight)
            self.read_is_fused = True


class StateBasicBlock(_StateBlock, BasicBlock):
    """mmdet's BasicBlock, reading the state."""

    def _after_conv1(self, out: Tensor) -> Tensor:
        return self.norm2(self.conv2(out))


class StateBottleneck(_StateBlock, Bottleneck):
    """mmdet's Bottleneck (plugins and DCN included), reading the state."""

    def _after_conv1(self, out: Tensor) -> Tensor:
        out = self._plug(out, 1)
        out = self._plug(self.relu(self.norm2(self.conv2(out))), 2)
        return self._plug(self.norm3(self.conv3(out)), 3)

    def _plug(self, out: Tensor, position: int) -> Tensor:
        if not self.with_plugins:
            return out
        return self.forward_plugin(out, getattr(self, f'after_conv{position}_plugin_names'))


class StateResNeXtBottleneck(StateBottleneck, ResNeXtBottleneck):
    """mmdet's ResNeXt Bottleneck, reading the state."""


_STATE_BLOCKS = {BasicBlock: StateBasicBlock, Bottleneck: StateBottleneck, ResNeXtBottleneck: StateResNeXtBottleneck}


@MODELS.register_module()
class S6LAResNet(MapStateMixin, ResNet):
    """ResNet with selective state space layer aggregation (S6LA, arXiv 2502.10463).

    A state h of ``state_dim`` channels is created in ``forward``, read by the first convolution of every block and
    written by one cell per stage after every block, except the last one, which nobody reads after. The readers
    start at zero, so that a new network computes what the plain network computes; all parameters of the plain network
    keep their names and shapes, and plain checkpoints load through ``init_cfg``.

    Every option of :class:`mmdet.models.ResNet` keeps its meaning: ``style``, ``deep_stem``, ``avg_down``, ``strides``,
    ``dilations``, ``out_indices``, ``frozen_stages`` (which freezes the readers and the cell of a stage with it),
    ``norm_cfg``, ``norm_eval``, ``with_cp`` (which covers block, read and write), ``dcn``, ``plugins``, ``init_cfg``.
    So do the two that only mmseg's ResNet has, and that its stage then builds: the reads follow every dilation.

    Args:
        depth (int): One of 18, 34, 50, 101, 152.
        groups (int): Groups of the 3 × 3 convolutions; more than 1 makes a ResNeXt. Defaults to 1.
        base_width (int): Width of a ResNeXt group at 64 base channels. Defaults to 4.
        multi_grid (Sequence[int], optional): Dilation of each block of the last stage, in place of its entry in
            ``dilations``; needs mmseg. Defaults to None.
        contract_dilation (bool): Halve the dilation of the first block of each dilated stage; needs mmseg. Defaults to
            False.
        **kwargs: Options of the state, see :class:`MapStateMixin` (``state_dim``, ``discretization``, ``input_norm``,
            ``dt_range``, ``shared_cell``, ``read_init``, ``learned_initial_state``, ``stage_with_state``,
            ``out_state``); and of :class:`mmdet.models.ResNet`.

    Raises:
        ValueError: If an option has a value that is not allowed; the message names option and value.

    Example:
        >>> import torch
        >>> backbone = S6LAResNet(depth=18).eval()
        >>> for out in backbone(torch.rand(1, 3, 33, 65)):
        ...     print(tuple(out.shape))
        (1, 64, 9, 17)
        (1, 128, 5, 9)
        (1, 256, 3, 5)
        (1, 512, 2, 3)
    """

    family = RESNET

    def __init__(
        self,
        depth: int,
        *,
        groups: int = 1,
        base_width: int = 4,
        multi_grid: Sequence[int] | None = None,
        contract_dilation: bool = False,
        **kwargs: Any,
    ) -> None:
        require(is_positive(groups), 'groups', groups, 'a positive integer')
        require(is_positive(base_width), 'base_width', base_width, 'a positive integer')
        # The base class builds the stages in its constructor and needs these there.
        self.groups = groups
        self.base_width = base_width
        self.multi_grid = multi_grid
        self.contract_dilation = contract_dilation
        super().__init__(depth=depth, **kwargs)
        # What the base class takes without a word, and does not do.
        last = self.num_stages - 1
        chosen = all(is_index(i, 0, last) for i in self.out_indices)
        require(chosen, 'out_indices', self.out_indices, f'one or more stages from 0 to {last}')
        fits = is_index(self.frozen_stages, -1, self.num_stages)
        require(fits, 'frozen_stages', self.frozen_stages, f'from -1 to num_stages={self.num_stages}')
        require(self.style in ('pytorch', 'caffe'), 'style', self.style, "'pytorch' or 'caffe'")
        has_dcn = self.dcn is None or self.block is Bottleneck
        require(has_dcn, 'dcn', self.dcn, f'None at depth {depth}: it needs depth 50 or more')

    def make_res_layer(self, block: type, **kwargs: Any) -> ResLayer:
        """Builds a stage, out of blocks that read the state where the stage carries it."""
        if self.groups > 1:
            require(block is Bottleneck, 'groups', self.groups, f'1 at depth {self.depth}: ResNeXt starts at depth 50')
            block = ResNeXtBottleneck
            kwargs.update(groups=self.groups, base_width=self.base_width, base_channels=self.base_channels)
        kwargs.update(with_cp=False)  # the forward of the backbone checkpoints, the write included
        stage = len(self.res_layers)
        if self._has_state(stage):
            block = _STATE_BLOCKS[block]
            kwargs.update(state_dim=self.state_dim, read_init=self.read_init)
        grid = self.multi_grid if stage == self.num_stages - 1 else None
        if grid is None and not (self.contract_dilation and kwargs['dilation'] > 1):
            return ResLayer(block=block, **kwargs)
        blocks = kwargs['num_blocks']
        fits = grid is None or (isinstance(grid, Sequence) and len(grid) == blocks and all(d > 0 for d in grid))
        require(fits, 'multi_grid', grid, f'None or {blocks} positive dilations, one for each block of the last stage')
        from mmseg.models.utils import ResLayer as DilatedResLayer

        return DilatedResLayer(block, multi_grid=grid, contract_dilation=self.contract_dilation, **kwargs)

    def _stages(self) -> list[tuple[str, nn.Sequential, int]]:
        channels = self.base_channels * self.block.expansion
        return [(name, getattr(self, name), channels * 2**stage) for stage, name in enumerate(self.res_layers)]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the feature maps.

        Args:
            x (Tensor): Images, (batch, in_channels, H, W), any H and W.

        Returns:
            tuple[Tensor, ...]: Feature maps of the stages in ``out_indices``, then the state if ``out_state``.
        """
        x = self.stem(x) if self.deep_stem else self.relu(self.norm1(self.conv1(x)))
        x = self.maxpool(x)
        state = self._first_state(x)
        maps = []
        for stage, name in enumerate(self.res_layers):
            x = self._run_stage(stage, getattr(self, name), x, state)
            if stage in self.out_indices:
                maps.append(x)
        return self._outputs(maps, x, state)

    def _block(self, block: nn.Module, x: Tensor, h: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
        x = block(x, h, out) if isinstance(block, _StateBlock) else block(x)
        return x, pool_state(h, block.stride)

    def _project(self, cell: S6LAMapCell, block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        return cell.project_with(block.conv1, x) if isinstance(block, _StateBlock) else (None, None)
