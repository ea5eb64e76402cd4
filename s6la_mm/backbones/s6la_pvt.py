"""S6LA-PVTv2: mmdet's Pyramid Vision Transformer v2 with a state that runs through the depth of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mmdet.models.backbones.pvt import PVTEncoderLayer, PyramidVisionTransformerV2, nlc_to_nchw
from mmengine.model import ModuleList
from mmengine.registry import MODELS
from torch import Tensor

from ..checkpoint.pretrained import is_pretrained
from ..layers import STATE_LAYERS
from ..layers.options import is_index, named_options, require
from .families.pvt import ARCH_ZOO, PVT
from .stages import Carried
from .token_state import TokenBlockMixin, TokenStateMixin


class StatePVTEncoderLayer(TokenBlockMixin, PVTEncoderLayer):
    """mmdet's PVTEncoderLayer, reading the state."""


class StatePVTStage(ModuleList):
    """The patch embedding, blocks and norm of a stage, which mmdet's network takes out of a list."""

    def forward(self, x: Tensor, run_blocks: Callable[..., Tensor]) -> Tensor:
        """Computes the feature map, (batch, D, H, W), of an image or map; ``run_blocks`` computes the tokens."""
        patch_embed, blocks, norm = self
        x, hw = patch_embed(x)
        return nlc_to_nchw(norm(run_blocks(blocks, x, hw)), hw)


@MODELS.register_module()
class S6LAPVTv2(TokenStateMixin, PyramidVisionTransformerV2):
    """PVTv2 with selective state space layer aggregation (S6LA, arXiv 2502.10463).

    A state h of ``state_dim`` numbers per channel is created in ``forward``. After every block, the cell of the stage
    writes the mean token to it; then every token reads it. A learned map carries the state to the channels of the next
    stage. The reads start at zero, so a new network computes what the plain network computes; all parameters of the
    plain network keep their names and shapes, and plain checkpoints (mmdet's and the authors') load through
    ``init_cfg``.

    Args:
        arch (str, optional): ``'b0'`` ... ``'b5'``: sets ``embed_dims``, ``num_layers`` and ``mlp_ratios``, where they
            are not given. Defaults to None: those of the base class, which is ``'b2'``.
        state_dim (int): Numbers N of the state per channel. Defaults to 16.
        discretization (str): ``'euler'`` or ``'zoh'``. Defaults to ``'euler'``.
        input_norm (str, optional): Norm of what is written, ``'rms'`` or None. Defaults to ``'rms'``.
        carry (bool): Carry the state from stage to stage; else each stage starts from the initial state. Defaults to
            True.
        out_indices (Sequence[int]): Stages to output. Defaults to (0, 1, 2, 3).
        with_cp (bool): Save memory by computing layers again in the backward pass. Defaults to False.
        **kwargs: Options of :class:`mmdet.models.PyramidVisionTransformerV2`: ``drop_path_rate``, ``init_cfg`` ...

    Raises:
        ValueError: If an option has a value that is not allowed, or an image is too small; the message names both.

    Example:
        >>> import torch
        >>> backbone = S6LAPVTv2('b0').eval()
        >>> for out in backbone(torch.rand(1, 3, 50, 70)):
        ...     print(tuple(out.shape))
        (1, 32, 13, 18)
        (1, 64, 7, 9)
        (1, 160, 4, 5)
        (1, 256, 2, 3)
    """

    family = PVT
    block_class = StatePVTEncoderLayer
    arch_zoo = ARCH_ZOO
    num_extra_tokens = 0

    def __init__(
        self,
        arch: str | None = None,
        *,
        state_dim: int = 16,
        discretization: str = 'euler',
        input_norm: str | None = 'rms',
        carry: bool = True,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
        **kwargs: Any,
    ) -> None:
        require(arch is None or arch in self.arch_zoo, 'arch', arch, f'None or one of {tuple(self.arch_zoo)}')
        kwargs = (self.arch_zoo[arch] if arch else {}) | kwargs
        last = kwargs.get('num_stages', 4) - 1
        chosen = bool(out_indices) and all(is_index(i, 0, last) for i in out_indices)
        require(chosen, 'out_indices', out_indices, f'one or more stages from 0 to {last}')
        if isinstance(init_cfg, dict) and 'checkpoint' in init_cfg:
            init_cfg = dict(type='Pretrained') | init_cfg  # mmdet's configs of PVT leave the type out
        loads = init_cfg is None or (isinstance(init_cfg, dict) and is_pretrained(init_cfg))
        require(loads, 'init_cfg', init_cfg, "None or dict(type='Pretrained', checkpoint=...): PVT initialises itself")
        with named_options(type(self), kwargs):
            super().__init__(out_indices=out_indices, init_cfg=init_cfg, **kwargs)
        self.with_cp = with_cp
        channels = [self.embed_dims * heads for heads in self.num_heads]
        for stage in self.layers:
            stage.__class__ = StatePVTStage  # the base class has no option for that
        stages = [blocks for _, blocks, _ in self.layers]
        self._add_state(stages, channels, state_dim, discretization, input_norm, carry)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the feature maps.

        Args:
            x (Tensor): Images, (batch, in_channels, H, W). No stage's map may be smaller than its ``sr_ratios`` says.

        Returns:
            tuple[Tensor, ...]: Feature maps of the stages in ``out_indices``.

        Raises:
            ValueError: If the image is too small.
        """
        state, image_size = Carried(), tuple(x.shape[2:])
        outs = []
        for i, stage in enumerate(self.layers):
            x = stage(x, partial(self._run_blocks, state, i, image_size))
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def _run_blocks(
        self,
        state: Carried,
        stage: int,
        image_size: tuple[int, ...],
        blocks: ModuleList,
        x: Tensor,
        hw: tuple[int, int],
    ) -> Tensor:
        """The tokens behind the blocks of a stage."""
        if min(hw) < self.sr_ratios[stage]:
            raise ValueError(
                f'images of {image_size[0]} x {image_size[1]} pixels have a map of {hw[0]} x {hw[1]} tokens in stage '
                f'{stage}, smaller than sr_ratios[{stage}]={self.sr_ratios[stage]}: use larger images'
            )
        self._enter_stage(stage, x, state)
        for block in blocks:
            x = self._layer(state, stage, block, x, hw)
        return x

    def _init_plain(self, loads_checkpoint: bool) -> None:
        """mmdet's initialisation, which sets every Linear, those of S6LA too, and warns that nothing is loaded."""
        if not loads_checkpoint:
            super()._init_plain(loads_checkpoint)
        for module in self.modules():
            if isinstance(module, STATE_LAYERS):
                module.init_weights()
        self._is_init = True
