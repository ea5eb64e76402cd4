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
from .stages import Carried
from .train_mode import TrainReturnsSelf


class Write:
    """The write of a block's output, which the block asks for before it reads.

    Args:
        cell (S6LATokenCell): The cell of the stage.
        h (Tensor): The state, (batch, D, N), and after the write the next one.
        num_extra_tokens (int): Tokens before the patch tokens.
    """

    def __init__(self, cell: S6LATokenCell, h: Tensor, num_extra_tokens: int) -> None:
        self.cell = cell
        self.h = h
        self.num_extra_tokens = num_extra_tokens

    def then(self, read: TokenRead, x: Tensor) -> Tensor:
        """Writes the summary token of ``x``; every patch token reads the new state."""
        self.h = self.cell(summary_token(x, self.num_extra_tokens), self.h)
        return read(x, self.h, self.num_extra_tokens)


class TokenBlockMixin(nn.Module):
    """Makes the block of a transformer return what its tokens are after they have read; put it before its class."""

    read: TokenRead

    def forward(self, x: Tensor, *args: Any, write: Write | None = None) -> Tensor:
        """Computes the block's output, (batch, tokens, D); without ``write`` that of the plain block."""
        x = super().forward(x, *args)
        return x if write is None else write.then(self.read, x)


class TokenStateMixin(TrainReturnsSelf, PretrainedMixin):
    """Gives a transformer one cell per stage, one read per block and the path of the state; before the base class.

    The subclass calls :meth:`_add_state` at the end of its constructor, and in ``forward`` :meth:`_enter_stage`
    once per stage and :meth:`_layer` in place of each block.
    """

    block_class: type[TokenBlockMixin]  # of the blocks that read

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
                block.__class__ = self.block_class  # the base classes have no option for that
                block.read = TokenRead(c, state_dim)
        watch_weight_decay(self)

    def _enter_stage(self, stage: int, x: Tensor, state: Carried) -> None:
        """Puts in its place what a stage starts from, (batch, D, N), given its tokens and the state so far."""
        if stage and self.carries:
            state.h = self.carries[stage - 1](state.h)
        else:
            state.h = self.initial_state.expand(x.shape[0], x.shape[2], -1)

    def _layer(self, state: Carried, stage: int, block: nn.Module, x: Tensor, *args: Any) -> Tensor:
        """One layer of the network, checkpointed as a whole if ``with_cp``; ``args`` go to the block."""
        cell = self.cells[stage]
        if self.with_cp and torch.is_grad_enabled():
            x, state.h = cp.checkpoint(self._step, block, cell, x, state.h, *args, use_reentrant=False)
        else:
            x, state.h = self._step(block, cell, x, state.h, *args)
        return x

    def _step(self, block: nn.Module, cell: S6LATokenCell, x: Tensor, h: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        """The block computes, the cell writes its summary token, every patch token reads the new state."""
        if not isinstance(block, TokenBlockMixin):  # nobody would use what is read: see S6LAViT
            return block(x, *args), h
        write = Write(cell, h, self.num_extra_tokens)
        return block(x, *args, write=write), write.h

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
