"""What the transformers share: where the token state lives, and one layer of a network that carries it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.utils.checkpoint as cp
from mmengine.model import ModuleList
from torch import Tensor, nn

from ..checkpoint import PretrainedMixin
from ..layers import S6LATokenCell, StateCarry, TokenRead, summary_token
from ..optim import watch_weight_decay
from .train_mode import TrainReturnsSelf


class TokenStateMixin(TrainReturnsSelf, PretrainedMixin):
    """Gives a transformer one cell per stage, one read per block and the path of the state; before the base class.

    The subclass calls :meth:`_add_state` at the end of its constructor, and in ``forward`` :meth:`_enter_stage`
    once per stage and :meth:`_layer` in place of each block.
    """

    state_options = frozenset({'state_dim', 'discretization', 'input_norm', 'carry'})
    not_decayed = ('initial_state',)
    num_extra_tokens: int  # tokens before the patch tokens; set by the base class or the subclass
    with_cp = False

    def _add_state(
        self,
        stages: Sequence[Iterable[nn.Module]],
        channels: Sequence[int],
        state_dim: int,
        discretization: str,
        input_norm: str | None,
        carry: bool = True,
    ) -> None:
        """Adds the parameters of S6LA: ``initial_state``, ``cells``, ``carries``, and ``read`` in every block.

        Args:
            stages (Sequence[Iterable[nn.Module]]): The blocks of each stage.
            channels (Sequence[int]): Channels D of each stage's tokens.
            state_dim (int): Numbers N of the state per channel.
            discretization (str): ``'euler'`` or ``'zoh'``.
            input_norm (str, optional): ``'rms'`` or None.
            carry (bool): Whether the state goes from stage to stage; else each starts from the initial state.
        """
        self.cells = ModuleList([S6LATokenCell(c, state_dim, discretization, input_norm) for c in channels])
        self.carries = ModuleList([StateCarry(a, b) for a, b in zip(channels, channels[1:])] if carry else [])
        self.initial_state = nn.Parameter(torch.zeros(state_dim))
        for blocks, c in zip(stages, channels):
            for block in blocks:
                # In the block, so that freezing a block and its depth in layer-wise decay cover the read.
                block.read = TokenRead(c, state_dim)
        watch_weight_decay(self)

    def _enter_stage(self, stage: int, x: Tensor, h: Tensor | None) -> Tensor:
        """The state that a stage starts from, (batch, D, N), given its tokens and the state of the stage before."""
        if stage and self.carries:
            return self.carries[stage - 1](h)
        return self.initial_state.expand(x.shape[0], x.shape[2], -1)

    def _layer(self, stage: int, block: nn.Module, x: Tensor, h: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        """One layer of the network, checkpointed as a whole if ``with_cp``; ``args`` go to the block."""
        cell = self.cells[stage]
        if self.with_cp and torch.is_grad_enabled():
            return cp.checkpoint(self._step, block, cell, x, h, *args, use_reentrant=False)
        return self._step(block, cell, x, h, *args)

    def _step(self, block: nn.Module, cell: S6LATokenCell, x: Tensor, h: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        """The block computes, the cell writes its summary token, every patch token reads the new state."""
        x = self._block(block, x, *args)
        if not hasattr(block, 'read'):  # nobody would use what is read: see S6LAViT
            return x, h
        h = cell(summary_token(x, self.num_extra_tokens), h)
        return block.read(x, h, self.num_extra_tokens), h

    def _block(self, block: nn.Module, x: Tensor, *args: Any) -> Tensor:
        return block(x, *args)

    def _freeze_state(self, num_stages: int) -> None:
        """Freezes what the state of the first stages is made of, so that they need no backward pass."""
        if num_stages < 1 or not hasattr(self, 'cells'):  # the base constructor may call this before they exist
            return
        self.initial_state.requires_grad_(False)
        self.cells[:num_stages].requires_grad_(False)
        self.carries[: num_stages - 1].requires_grad_(False)

    def _state_depth(self, name: str, stage_ends: Sequence[int]) -> int | None:
        """Depth of a parameter of the state in layer-wise decay, given that of each stage's last block; else None.

        A cell serves all blocks of its stage and takes the depth of the last one, as a layer between stages does.
        """
        module, _, rest = name.partition('.')
        if module == 'initial_state':
            return 0
        return stage_ends[int(rest.partition('.')[0])] if module in ('cells', 'carries') else None
