"""What the convolutional backbones share: where the map state lives, and one layer of a network that carries it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.utils.checkpoint as cp
from mmengine.model import ModuleDict
from torch import Tensor, nn

from ..checkpoint import PretrainedMixin
from ..layers import S6LAMapCell
from ..layers.options import named_options, require
from ..layers.state_parameters import check_cell_options
from ..optim import watch_weight_decay
from .stages import Carried, StateStage
from .train_mode import TrainReturnsSelf


class MapState(Carried):
    """The state between two blocks.

    Args:
        h (Tensor): The map, (batch, N, H, W).
        composed (dict): What the writes of this forward pass share, by the names of the cells.

    Attributes:
        cell (str, optional): Name of the cell that has yet to write the last block's output. It waits for the next
            block, as its first convolution and that block's can be one: see ``S6LAMapCell.project_with``.
    """

    h: Tensor

    def __init__(self, h: Tensor, composed: dict[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__(h)
        self.composed = composed
        self.cell: str | None = None


class MapStateMixin(TrainReturnsSelf, PretrainedMixin):
    """Gives a convolutional backbone cells, reads and the path of the state; before the base class.

    The subclass says in :meth:`_stages` what its stages are, and in :meth:`_block` how a block computes. Its
    ``forward`` calls :meth:`_first_state`, :meth:`_run_stage` for each stage, and :meth:`_outputs`.

    Args:
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
        **kwargs: Options of the base class.

    Raises:
        ValueError: If an option has a value that is not allowed. The message names option, value and allowed values;
            for an option of the base class, what was given and the base class.
    """

    state_options = frozenset(
        {
            'state_dim',
            'discretization',
            'input_norm',
            'dt_range',
            'shared_cell',
            'read_init',
            'learned_initial_state',
            'stage_with_state',
            'out_state',
        }
    )
    not_decayed = ('initial_state',)
    num_stages: int  # set by the base class, as are the frozen stages
    frozen_stages: int

    def __init__(
        self,
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
        **kwargs: Any,
    ) -> None:
        check_cell_options(state_dim, discretization, input_norm, dt_range)
        is_choice = stage_with_state is None or (isinstance(stage_with_state, Sequence) and any(stage_with_state))
        require(is_choice, 'stage_with_state', stage_with_state, 'a sequence of length num_stages, True somewhere')
        # The base class may build blocks that read in its constructor.
        self.state_dim = state_dim
        self.read_init = read_init
        self.shared_cell = shared_cell
        self.stage_with_state = tuple(stage_with_state or ())  # none: all, whose number is not known yet
        self.out_state = out_state
        with named_options(type(self), kwargs):
            super().__init__(**kwargs)
        self.stage_with_state = self.stage_with_state or (True,) * self.num_stages
        fits = len(self.stage_with_state) == self.num_stages
        require(fits, 'stage_with_state', stage_with_state, f'a sequence of length num_stages={self.num_stages}')
        self.initial_state = nn.Parameter(torch.zeros(state_dim), requires_grad=learned_initial_state)
        self.cells = ModuleDict()
        for stage, (_, blocks, channels) in enumerate(self._stages()):
            blocks.__class__ = StateStage  # the base classes have no option for that of a stage
            for index, block in enumerate(blocks):
                if self._has_state(stage):
                    self._add_read(block, channels)
                key = self._cell_of(stage, index)
                if key is not None and key not in self.cells:
                    self.cells[key] = S6LAMapCell(channels, state_dim, discretization, input_norm, dt_range)
        self._freeze_stages()
        watch_weight_decay(self)

    def _stages(self) -> list[tuple[str, nn.Sequential, int]]:
        """Of each stage: the name of its cell, its blocks, and the channels of their outputs."""
        raise NotImplementedError

    def _add_read(self, block: nn.Module, channels: int) -> None:
        """Makes a block read the state, where the base class has built one that does not."""

    def _block(self, block: nn.Module, x: Tensor, h: Tensor, out: Tensor | None, *args: Any) -> tuple[Tensor, Tensor]:
        """A block's output, and the state at its resolution; ``out`` is what :meth:`_project` has computed."""
        raise NotImplementedError

    def _project(self, cell: S6LAMapCell, block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """``S6LAMapCell.project_with``, if the first layer of a block can be one with the cell's; else None twice."""
        return None, None

    def _has_state(self, stage: int) -> bool:
        """Whether the blocks of a stage read and write, in the constructor of the base class too."""
        return not self.stage_with_state or any(self.stage_with_state[stage : stage + 1])

    def _cell_of(self, stage: int, block: int) -> str | None:
        """Name of the cell that writes a block's output; None if it is not written.

        A write that nothing reads after has parameters without a gradient, which breaks distributed training.
        """
        if not self._has_state(stage):
            return None
        name, blocks, _ = self._stages()[stage]
        is_last_reader = block == len(blocks) - 1 and not any(self.stage_with_state[stage + 1 :])
        if is_last_reader and not self.out_state:
            return None
        return name if self.shared_cell else f'{name}_{block}'

    def _freeze_stages(self) -> None:
        super()._freeze_stages()
        if not hasattr(self, 'cells'):  # the base constructor calls this before they exist, ours once they do
            return
        names = [name for name, _, _ in self._stages()[: max(self.frozen_stages, 0)]]
        frozen = [key for key in self.cells if key.partition('_')[0] in names]
        for key in frozen:
            self.cells[key].requires_grad_(False)
        if frozen:
            # Else the frozen stages, which read the initial state, would need a backward pass.
            self.initial_state.requires_grad_(False)

    def _first_state(self, x: Tensor) -> MapState:
        """The state that the first block reads, given that block's input."""
        h = self.initial_state.view(1, -1, 1, 1).expand(x.shape[0], -1, *x.shape[2:])
        return MapState(h, {key: cell.compose() for key, cell in self.cells.items()})

    def _run_stage(self, stage: int, blocks: nn.Sequential, x: Tensor, state: MapState) -> Tensor:
        """A stage's feature map; ``state`` is what it carries on then."""
        return blocks(x, partial(self._layer, state, stage))

    def _layer(self, state: MapState, stage: int, index: int, block: nn.Module, x: Tensor, *args: Any) -> Tensor:
        """One layer of the network: the block reads the state and computes its output; ``args`` go to :meth:`_block`.

        What the block before has left to write is written first. Checkpointed as a whole if ``with_cp``.
        """
        write = (None, None) if state.cell is None else (self.cells[state.cell], state.composed[state.cell])
        if self.with_cp and torch.is_grad_enabled():
            x, state.h = cp.checkpoint(self._step, block, *write, x, state.h, *args, use_reentrant=False)
        else:
            x, state.h = self._step(block, *write, x, state.h, *args)
        state.cell = self._cell_of(stage, index)
        return x

    def _step(
        self,
        block: nn.Module,
        cell: S6LAMapCell | None,
        composed: tuple[Tensor, Tensor] | None,
        x: Tensor,
        h: Tensor,
        *args: Any,
    ) -> tuple[Tensor, Tensor]:
        out = None
        if cell is not None:
            out, u = self._project(cell, block, x)
            h = cell(x, h, composed, u)
        return self._block(block, x, h, out, *args)

    def _outputs(self, maps: list[Tensor], x: Tensor, state: MapState) -> tuple[Tensor, ...]:
        """What the backbone returns: feature maps, then the state if ``out_state``."""
        if self.out_state:
            key = state.cell
            maps.append(state.h if key is None else self.cells[key](x, state.h, state.composed[key]))
        return tuple(maps)
