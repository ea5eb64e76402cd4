"""S6LA-ResNet: mmdet's ResNet and ResNeXt with a state that runs through the depth of the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.utils.checkpoint as cp
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from mmdet.models.backbones.resnext import Bottleneck as ResNeXtBottleneck
from mmdet.models.layers import ResLayer
from mmengine.model import ModuleDict
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..checkpoint import PretrainedMixin
from ..layers import S6LAMapCell, StateRead, pool_state
from .train_mode import TrainReturnsSelf


class _StateBlock:
    """What a residual block gains: a read of the state beside its first convolution."""

    def __init__(self, *args, state_dim: int, read_init: str, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.read = StateRead(state_dim, self.conv1, read_init)

    def forward(self, x: Tensor, h: Tensor, out: Tensor | None = None) -> Tensor:
        """Computes the block's output; ``out`` is ``conv1(x)``, where the caller has it."""
        norm1 = self.norm1
        if isinstance(norm1, nn.Identity):
            raise RuntimeError(
                'norm1 of this block has been folded into conv1 (fuse_conv_bn), but not into the read of the state, '
                'which it scales too. Do not fuse an S6LA backbone: leave out --fuse-conv-bn.'
            )
        out = self.conv1(x) if out is None else out
        out = self.relu(norm1(self.read(h, out)))
        out = self._after_conv1(out)
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


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


# What the base class takes for an option that is not given, as far as it is checked below.
_DEFAULTS = dict(
    num_stages=4,
    style='pytorch',
    strides=(1, 2, 2, 2),
    dilations=(1, 1, 1, 1),
    out_indices=(0, 1, 2, 3),
    frozen_stages=-1,
    dcn=None,
    stage_with_dcn=(False, False, False, False),
    plugins=None,
)


@MODELS.register_module()
class S6LAResNet(TrainReturnsSelf, PretrainedMixin, ResNet):
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
        state_dim (int): Channels N of the state. Defaults to 32.
        discretization (str): ``'euler'`` or ``'zoh'``. Defaults to ``'euler'``.
        input_norm (str, optional): Norm of what is written, ``'rms'`` or None. Defaults to ``'rms'``.
        dt_range (tuple[float, float]): The steps Δ start log-uniform in this range, one for each channel of a cell.
            Defaults to (1e-3, 1e-1).
        shared_cell (bool): One cell for all blocks of a stage, as an SSM shares its projections over time; else one for
            each block. Defaults to True.
        read_init (str): ``'zero'``, or ``'kaiming'``, with which the network does not start as the plain one. Defaults
            to ``'zero'``.
        learned_initial_state (bool): Train h⁰; else it stays zero. Defaults to True.
        stage_with_state (Sequence[bool], optional): Which stages read and write; the state is carried through the
            others. Defaults to all.
        out_state (bool): Return the state, (batch, N, H, W) at the last stage's resolution, after the feature maps.
            The last block writes too, then. Defaults to False.
        groups (int): Groups of the 3 × 3 convolutions; more than 1 makes a ResNeXt. Defaults to 1.
        base_width (int): Width of a ResNeXt group at 64 base channels. Defaults to 4.
        multi_grid (Sequence[int], optional): Dilation of each block of the last stage, in place of its entry in
            ``dilations``; needs mmseg. Defaults to None.
        contract_dilation (bool): Halve the dilation of the first block of each dilated stage; needs mmseg. Defaults to
            False.
        **kwargs: Options of :class:`mmdet.models.ResNet`.

    Raises:
        ValueError: If an option has a value that is not allowed; the message names option, value and allowed values.

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

    def __init__(
        self,
        depth: int,
        *,
        state_dim: int = 32,
        discretization: str = 'euler',
        input_norm: str | None = 'rms',
        dt_range: tuple[float, float] = (1e-3, 1e-1),
        shared_cell: bool = True,
        read_init: str = 'zero',
        learned_initial_state: bool = True,
        stage_with_state: Sequence[bool] | None = None,
        out_state: bool = False,
        groups: int = 1,
        base_width: int = 4,
        multi_grid: Sequence[int] | None = None,
        contract_dilation: bool = False,
        **kwargs,
    ) -> None:
        if stage_with_state is None:
            stage_with_state = (True,) * kwargs.get('num_stages', 4)
        own = dict(depth=depth, state_dim=state_dim, stage_with_state=stage_with_state, multi_grid=multi_grid)
        _check_options(self.arch_settings, kwargs | own | dict(groups=groups, base_width=base_width))
        # The base class builds the stages in its constructor and needs these there.
        self.state_dim = state_dim
        self.read_init = read_init
        self.shared_cell = shared_cell
        self.stage_with_state = tuple(stage_with_state)
        self.out_state = out_state
        self.groups = groups
        self.base_width = base_width
        self.multi_grid = multi_grid
        self.contract_dilation = contract_dilation
        super().__init__(depth, **kwargs)
        self.initial_state = nn.Parameter(torch.zeros(state_dim), requires_grad=learned_initial_state)
        self.cells = ModuleDict()
        for stage in range(self.num_stages):
            channels = self.base_channels * 2**stage * self.block.expansion
            for block in range(self.stage_blocks[stage]):
                key = self._cell_of(stage, block)
                if key is not None and key not in self.cells:
                    self.cells[key] = S6LAMapCell(channels, state_dim, discretization, input_norm, dt_range)
        self._freeze_stages()

    def make_res_layer(self, block: type, **kwargs) -> ResLayer:
        """Builds a stage, out of blocks that read the state where the stage carries it."""
        if self.groups > 1:
            block = ResNeXtBottleneck
            kwargs.update(groups=self.groups, base_width=self.base_width, base_channels=self.base_channels)
        kwargs.update(with_cp=False)  # the forward of the backbone checkpoints, the write included
        stage = len(self.res_layers)
        if self.stage_with_state[stage]:
            block = _STATE_BLOCKS[block]
            kwargs.update(state_dim=self.state_dim, read_init=self.read_init)
        multi_grid = self.multi_grid if stage == self.num_stages - 1 else None
        if multi_grid is None and not (self.contract_dilation and kwargs['dilation'] > 1):
            return ResLayer(block=block, **kwargs)
        from mmseg.models.utils import ResLayer as DilatedResLayer

        return DilatedResLayer(block, multi_grid=multi_grid, contract_dilation=self.contract_dilation, **kwargs)

    def _writes(self, stage: int, block: int) -> bool:
        """Whether a block's output is written: a write that nothing reads after would have no gradient."""
        if not self.stage_with_state[stage]:
            return False
        is_last_reader = block == self.stage_blocks[stage] - 1 and not any(self.stage_with_state[stage + 1 :])
        return self.out_state or not is_last_reader

    def _cell_of(self, stage: int, block: int) -> str | None:
        """Name of the cell that writes a block's output, if it is written."""
        if not self._writes(stage, block):
            return None
        return self.res_layers[stage] if self.shared_cell else f'{self.res_layers[stage]}_{block}'

    def _freeze_stages(self) -> None:
        super()._freeze_stages()
        if not hasattr(self, 'cells'):  # the base constructor calls this before they exist, ours once they do
            return
        stages = self.res_layers[: max(self.frozen_stages, 0)]
        frozen = [name for name in self.cells if name.partition('_')[0] in stages]
        for name in frozen:
            self.cells[name].requires_grad_(False)
        if frozen:
            # Else the frozen stages, which read the initial state, would need a backward pass.
            self.initial_state.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the feature maps.

        Args:
            x (Tensor): Images, (batch, in_channels, H, W), any H and W.

        Returns:
            tuple[Tensor, ...]: Feature maps of the stages in ``out_indices``, then the state if ``out_state``.
        """
        x = self.stem(x) if self.deep_stem else self.relu(self.norm1(self.conv1(x)))
        x = self.maxpool(x)
        h = self.initial_state.view(1, -1, 1, 1).expand(x.shape[0], -1, *x.shape[2:])
        outs = []
        composed = {key: cell.compose() for key, cell in self.cells.items()}
        key = None  # of the cell by which x is still to be written
        for stage, name in enumerate(self.res_layers):
            for index, block in enumerate(getattr(self, name)):
                write = (None, None) if key is None else (self.cells[key], composed[key])
                if self.with_cp and torch.is_grad_enabled():
                    x, h = cp.checkpoint(self._layer, block, *write, x, h, use_reentrant=False)
                else:
                    x, h = self._layer(block, *write, x, h)
                key = self._cell_of(stage, index)
            if stage in self.out_indices:
                outs.append(x)
        if self.out_state:
            outs.append(h if key is None else self.cells[key](x, h, composed[key]))
        return tuple(outs)

    @staticmethod
    def _layer(
        block: nn.Module, cell: S6LAMapCell | None, composed: tuple[Tensor, Tensor] | None, x: Tensor, h: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One layer of the network: the cell writes the previous block's output, the block reads it and the state.

        The two are computed together, as their first convolutions can be one.
        """
        reads = isinstance(block, _StateBlock)
        out = u = None
        if cell is not None:
            if reads:
                out, u = cell.project_with(block.conv1, x)
            h = cell(x, h, composed, u)
        x = block(x, h, out) if reads else block(x)
        return x, pool_state(h, block.stride)


def _check_options(arch_settings: dict, options: dict) -> None:
    """Raises a ValueError on option values that the base class would answer with an assertion without words."""
    options = _DEFAULTS | options

    def require(condition: bool, name: str, allowed: str) -> None:
        if not condition:
            raise ValueError(f'{name}={options[name]!r} is not allowed: it must be {allowed}')

    def is_positive(name: str) -> bool:
        return isinstance(options[name], int) and options[name] > 0

    depth, num_stages = options['depth'], options['num_stages']
    require(depth in arch_settings, 'depth', f'one of {tuple(arch_settings)}')
    require(num_stages in (1, 2, 3, 4), 'num_stages', '1, 2, 3 or 4')
    for name in ('state_dim', 'groups', 'base_width'):
        require(is_positive(name), name, 'a positive integer')
    require(options['style'] in ('pytorch', 'caffe'), 'style', "'pytorch' or 'caffe'")
    for name in ('strides', 'dilations', 'stage_with_state') + (('stage_with_dcn',) if options['dcn'] else ()):
        is_sequence = isinstance(options[name], Sequence)
        require(is_sequence and len(options[name]) == num_stages, name, f'a sequence of length num_stages={num_stages}')
    require(any(options['stage_with_state']), 'stage_with_state', "True somewhere (else use mmdet's ResNet)")
    stages = tuple(range(num_stages))
    chosen = set(options['out_indices'])
    require(bool(chosen) and chosen <= set(stages), 'out_indices', f'one or more of the stages {stages}')
    require(-1 <= options['frozen_stages'] <= num_stages, 'frozen_stages', f'from -1 to num_stages={num_stages}')
    blocks = arch_settings[depth][1][num_stages - 1]
    grid = options['multi_grid']
    fits = grid is None or (isinstance(grid, Sequence) and len(grid) == blocks and all(d > 0 for d in grid))
    require(fits, 'multi_grid', f'None or {blocks} positive dilations, one for each block of the last stage')
    has_bottlenecks = arch_settings[depth][0] is Bottleneck
    require(options['groups'] == 1 or has_bottlenecks, 'groups', f'1 at depth {depth}: ResNeXt starts at depth 50')
    for name in ('plugins', 'dcn'):
        require(options[name] is None or has_bottlenecks, name, f'None at depth {depth}: it needs depth 50 or more')
    for plugin in options['plugins'] or ():
        positions = tuple(f'after_conv{i}' for i in (1, 2, 3))
        require(plugin['position'] in positions, 'plugins', f'each at a position out of {positions}')
        stages_with = plugin.get('stages')
        fits = stages_with is None or len(stages_with) == num_stages
        require(fits, 'plugins', f"each with 'stages' of length num_stages={num_stages}")
