"""S6LA-Swin: mmpretrain's Swin Transformer with a state that runs through the depth of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import isqrt
from typing import Any

import torch.nn.functional as F
from mmpretrain.models.backbones import SwinTransformer
from mmpretrain.models.backbones.swin_transformer import SwinBlock, SwinBlockSequence
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn

from ..layers.options import is_index, require
from .families.swin import SWIN
from .stages import Carried
from .token_state import TokenBlockMixin, TokenStateMixin


class StateSwinBlock(TokenBlockMixin, SwinBlock):
    """mmpretrain's SwinBlock, reading the state."""


class StateSwinBlockSequence(SwinBlockSequence):
    """mmpretrain's stage, whose blocks need more than the tokens."""

    def forward(
        self,
        x: Tensor,
        in_shape: tuple[int, int],
        do_downsample: bool = True,
        layer: Callable[..., Tensor] | None = None,
    ) -> tuple[Tensor, tuple[int, int]]:
        """Computes what the base class does: tokens and the shape of their map; ``layer`` computes a block's output."""
        if layer is None:
            return super().forward(x, in_shape, do_downsample)
        for block in self.blocks:
            x = layer(block, x, in_shape)
        return self.downsample(x, in_shape) if self.downsample is not None and do_downsample else (x, in_shape)


class S6LASwin(TokenStateMixin, SwinTransformer):
    """Swin Transformer with selective state space layer aggregation (S6LA, arXiv 2502.10463).

    A state h of ``state_dim`` numbers per channel is created in ``forward``. After every block, the cell of the stage
    writes the mean token to it; then every token reads it. A learned map carries the state to the channels of the next
    stage. The reads start at zero, so a new network computes what the plain network computes; all parameters of the
    plain network keep their names and shapes, and plain checkpoints load through ``init_cfg``.

    Every option of :class:`mmpretrain.models.SwinTransformer` keeps its meaning: ``arch``, ``window_size``,
    ``drop_path_rate``, ``out_after_downsample``, ``pad_small_map``, ``stage_cfgs``, ``init_cfg`` ...; ``frozen_stages``
    freezes the cells and reads of the frozen stages with them, and ``with_cp`` covers block, write and read.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'base'`` or ``'large'``, or a dict with embed_dims, depths and
            num_heads. Defaults to ``'tiny'``.
        state_dim (int): Numbers N of the state per channel. Defaults to 16.
        discretization (str): ``'euler'`` or ``'zoh'``. Defaults to ``'euler'``.
        input_norm (str, optional): Norm of what is written, ``'rms'`` or None. Defaults to ``'rms'``.
        carry (bool): Carry the state from stage to stage; else each stage starts from the initial state. Defaults to
            True.
        out_indices (Sequence[int]): Stages to output. Defaults to (3,).
        frozen_stages (int): Last stage to freeze, from 0; none if -1. Defaults to -1.
        with_cp (bool): Save memory by computing layers again in the backward pass. Defaults to False.
        **kwargs: Options of :class:`mmpretrain.models.SwinTransformer`.

    Raises:
        ValueError: If an option has a value that is not allowed, or an image is too small; the message names both.

    Example:
        >>> import torch
        >>> backbone = S6LASwin('tiny', out_indices=(0, 3), pad_small_map=True).eval()
        >>> for out in backbone(torch.rand(1, 3, 70, 101)):
        ...     print(tuple(out.shape))
        (1, 96, 18, 26)
        (1, 768, 3, 4)
    """

    family = SWIN
    block_class = StateSwinBlock

    def __init__(
        self,
        arch: str | dict = 'tiny',
        *,
        state_dim: int = 16,
        discretization: str = 'euler',
        input_norm: str | None = 'rms',
        carry: bool = True,
        out_indices: Sequence[int] = (3,),
        frozen_stages: int = -1,
        with_cp: bool = False,
        **kwargs: Any,
    ) -> None:
        if isinstance(arch, str):
            require(arch.lower() in self.arch_zoo, 'arch', arch, f'a dict or one of {tuple(self.arch_zoo)}')
            depths = self.arch_zoo[arch.lower()]['depths']
        else:
            keys = ('embed_dims', 'depths', 'num_heads')
            require(isinstance(arch, dict) and set(arch) == set(keys), 'arch', arch, f'a name or a dict with {keys}')
            depths = arch['depths']
        last = len(depths) - 1
        chosen = bool(out_indices) and all(is_index(i, 0, last) for i in out_indices)
        require(chosen, 'out_indices', out_indices, f'one or more stages from 0 to {last}')
        require(is_index(frozen_stages, -1, last), 'frozen_stages', frozen_stages, f'from -1 to {last}')
        super().__init__(arch, out_indices=out_indices, frozen_stages=frozen_stages, **kwargs)
        self.with_cp = with_cp
        channels = [stage.embed_dims for stage in self.stages]
        for stage in self.stages:
            stage.__class__ = StateSwinBlockSequence  # the base class has no option for that
        self._add_state([s.blocks for s in self.stages], channels, state_dim, discretization, input_norm, carry)
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the feature maps.

        Args:
            x (Tensor): Images, (batch, in_channels, H, W). Without ``pad_small_map``, no stage's map may be smaller
                than a window.

        Returns:
            tuple[Tensor, ...]: Feature maps of the stages in ``out_indices``.

        Raises:
            ValueError: If the image is too small.
        """
        image_size = tuple(x.shape[2:])
        x, hw = self.patch_embed(x)
        if self.use_abs_pos_embed:
            x = x + resize_pos_embed(
                self.absolute_pos_embed, self.patch_resolution, hw, self.interpolate_mode, self.num_extra_tokens
            )
        x = self.drop_after_pos(x)
        state = Carried()
        outs = []
        for i, stage in enumerate(self.stages):
            for block in stage.blocks:
                _check_map_size(block.attn, hw, image_size)
            self._enter_stage(i, x, state)
            x, hw = stage(x, hw, self.out_after_downsample, partial(self._layer, state, i))
            if i in self.out_indices:
                out = getattr(self, f'norm{i}')(x)
                outs.append(out.view(-1, *hw, self.num_features[i]).permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None and not self.out_after_downsample:
                x, hw = stage.downsample(x, hw)
        return tuple(outs)

    def _freeze_stages(self) -> None:
        super()._freeze_stages()
        self._freeze_state(self.frozen_stages + 1)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter and number of depths, for layer-wise learning-rate decay.

        Args:
            param_name (str): Name of the parameter.
            prefix (str): Prefix of the backbone's parameters in the model. Defaults to ''.

        Returns:
            tuple[int, int]: The base class's answer. A cell, and the map that carries its state on, have the depth of
            the stage's last block, the initial state that of the stem.
        """
        if param_name.startswith(prefix):
            ends = [sum(self.depths[: i + 1]) for i in range(len(self.depths))]
            depth = self._state_depth(param_name[len(prefix) :], ends)
            if depth is not None:
                return depth, sum(self.depths) + 2
        return super().get_layer_depth(param_name, prefix)

    def optional_keys(self) -> tuple[str, ...]:
        """The norms of the outputs: a classifier has that of the last stage only."""
        return tuple(f'norm{i}.' for i in self.out_indices)

    def convert_checkpoint(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fits a checkpoint of another image or window size, or in a format of earlier versions.

        The base class does that for its own type only, and resizes with a function that newer SciPy removed.

        Raises:
            ValueError: If the absolute position embedding is of another image size that was not square.
        """
        last = len(self.stages) - 1
        state_dict = {
            f'norm{last}{key[4:]}' if key.startswith('norm.') else key: tensor
            for key, tensor in state_dict.items()
            if not key.endswith('.attn_mask')
        }
        for key, tensor in self.state_dict().items():
            if key not in state_dict or state_dict[key].shape == tensor.shape:
                continue
            if key.endswith('relative_position_index'):
                state_dict[key] = tensor
            elif key.endswith('relative_position_bias_table'):
                state_dict[key] = _resized_table(state_dict[key], tensor.shape[0])
            elif key == 'absolute_pos_embed':
                side = isqrt(state_dict[key].shape[1])
                if side**2 != state_dict[key].shape[1]:
                    raise ValueError(
                        f'the checkpoint has a position embedding of {state_dict[key].shape[1]} patches, which is no '
                        f'square, and img_size makes {self.patch_resolution}: set img_size to that of the checkpoint'
                    )
                state_dict[key] = resize_pos_embed(
                    state_dict[key], (side, side), self.patch_resolution, self.interpolate_mode, self.num_extra_tokens
                )
        return state_dict


def _check_map_size(attn: nn.Module, hw: tuple[int, int], image_size: tuple[int, int]) -> None:
    """Raises a ValueError where a map is smaller than a window, which the attention would answer with an assertion."""
    if min(hw) < attn.window_size and not attn.pad_small_map:
        raise ValueError(
            f'images of {image_size[0]} x {image_size[1]} pixels have a map of {hw[0]} x {hw[1]} tokens, smaller than '
            f'window_size={attn.window_size}: set pad_small_map=True, or use a smaller window_size or larger images'
        )


def _resized_table(table: Tensor, length: int) -> Tensor:
    """Interpolates a table of relative positions, ((2 w − 1)², heads), bicubically to ``length`` rows."""
    source, target = isqrt(table.shape[0]), isqrt(length)
    maps = table.float().T.reshape(1, -1, source, source)
    maps = F.interpolate(maps, size=(target, target), mode='bicubic', align_corners=True)
    return maps.flatten(2)[0].T.to(table.dtype)
