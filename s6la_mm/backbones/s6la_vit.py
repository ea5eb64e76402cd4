"""S6LA-ViT: mmpretrain's Vision Transformer (DeiT included) with a state that runs through the depth of the network."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

import torch
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor

from ..layers.options import is_index, require
from ..layers.window_attention import attend_in_windows
from .families.vit import VIT
from .stages import Carried
from .token_state import TokenBlockMixin, TokenStateMixin


class WindowedLayer(TransformerEncoderLayer):
    """mmpretrain's layer, whose attention may run within windows."""

    def forward(self, x: Tensor, hw: tuple[int, int] | None = None, window_size: int | None = None) -> Tensor:
        """Computes the layer's output, (batch, tokens, D), in windows of a map of H × W tokens if there is a size."""
        if hw is None or window_size is None:
            return super().forward(x)
        x = x + attend_in_windows(self.attn, self.ln1(x), hw, window_size)
        return self.ffn(self.ln2(x), identity=x)


class StateTransformerEncoderLayer(TokenBlockMixin, WindowedLayer):
    """That, reading the state."""


class S6LAViT(TokenStateMixin, VisionTransformer):
    """Vision Transformer with selective state space layer aggregation (S6LA, arXiv 2502.10463).

    A state h of ``state_dim`` numbers per channel is created in ``forward``. After every block, one cell writes the
    class token to it, or the mean of the patch tokens where there is none; then every patch token reads it. The reads
    start at zero, so a new network computes what the plain network computes; all parameters of the plain network keep
    their names and shapes, and plain checkpoints load through ``init_cfg``. With ``out_type='cls_token'`` the last
    block neither writes nor reads: its patch tokens reach no output.

    Every option of :class:`mmpretrain.models.VisionTransformer` keeps its meaning: ``arch``, ``img_size``,
    ``patch_size``, ``drop_path_rate``, ``final_norm``, ``frozen_stages`` (which freezes the reads of the frozen layers,
    and the one cell with them: else what frozen layers compute would change), ``layer_cfgs``, ``init_cfg`` ... Images
    may have any size: the position embedding is resized.

    Args:
        arch (str | dict): ``'deit-tiny'``, ``'deit-small'``, ``'deit-base'``, ``'base'``, ``'large'`` ..., or a dict
            with embed_dims, num_layers, num_heads and feedforward_channels. Defaults to ``'base'``.
        state_dim (int): Numbers N of the state per channel. Defaults to 16.
        discretization (str): ``'euler'`` or ``'zoh'``. Defaults to ``'euler'``.
        input_norm (str, optional): Norm of what is written, ``'rms'`` or None. Defaults to ``'rms'``.
        out_indices (Sequence[int] | int): Layers to output, from the end where negative. Defaults to -1.
        out_type (str): ``'cls_token'``, ``'featmap'`` (for dense prediction), ``'avg_featmap'`` or ``'raw'``. Defaults
            to ``'cls_token'``.
        with_cls_token (bool): Whether there is a class token. Defaults to True.
        frozen_stages (int): Layers to freeze, with everything before them; none if below 1. Defaults to -1.
        window_size (int, optional): Attention runs within windows of that many tokens squared, except in
            ``global_layers`` (ViTDet, arXiv 2203.16527; the maps may have any size). Needs ``with_cls_token=False``.
            Defaults to None: global attention everywhere.
        global_layers (Sequence[int], optional): Layers with global attention. Defaults to four, evenly spaced, the
            last one included.
        with_cp (bool): Save memory by computing layers again in the backward pass. Defaults to False.
        **kwargs: Options of :class:`mmpretrain.models.VisionTransformer`.

    Raises:
        ValueError: If an option has a value that is not allowed; the message names option, value and allowed values.

    Example:
        >>> import torch
        >>> backbone = S6LAViT('deit-tiny', out_type='featmap', with_cls_token=False, window_size=7).eval()
        >>> (out,) = backbone(torch.rand(1, 3, 160, 250))
        >>> tuple(out.shape)
        (1, 192, 10, 16)
    """

    family = VIT
    block_class = StateTransformerEncoderLayer

    def __init__(
        self,
        arch: str | dict = 'base',
        *,
        state_dim: int = 16,
        discretization: str = 'euler',
        input_norm: str | None = 'rms',
        out_indices: Sequence[int] | int = -1,
        out_type: str = 'cls_token',
        with_cls_token: bool = True,
        frozen_stages: int = -1,
        window_size: int | None = None,
        global_layers: Sequence[int] | None = None,
        with_cp: bool = False,
        **kwargs: Any,
    ) -> None:
        num_layers = self._check_arch(arch, out_type)
        if isinstance(out_indices, int):
            out_indices = [out_indices]
        layers = f'one or more layers from {-num_layers} to {num_layers - 1}'
        chosen = bool(out_indices) and all(is_index(i, -num_layers, num_layers - 1) for i in out_indices)
        require(chosen, 'out_indices', out_indices, layers)
        require(out_type in self.OUT_TYPES, 'out_type', out_type, f'one of {tuple(sorted(self.OUT_TYPES))}')
        has_token = with_cls_token or out_type != 'cls_token'
        require(has_token, 'with_cls_token', with_cls_token, "True with out_type='cls_token' (else use 'avg_featmap')")
        require(is_index(frozen_stages, -1, num_layers), 'frozen_stages', frozen_stages, f'from -1 to {num_layers}')
        windowed: frozenset[int] = frozenset()
        if window_size is None:
            require(global_layers is None, 'global_layers', global_layers, 'None without window_size')
        else:
            require(is_index(window_size, 1, 10**6), 'window_size', window_size, 'a positive integer or None')
            without = f'None with with_cls_token={with_cls_token}: set that to False, a class token is in no window'
            require(not with_cls_token, 'window_size', window_size, without)
            if global_layers is None:
                global_layers = sorted({max(num_layers * (i + 1) // 4 - 1, 0) for i in range(4)})
            in_range = all(is_index(i, 0, num_layers - 1) for i in global_layers)
            require(in_range, 'global_layers', global_layers, f'layers from 0 to {num_layers - 1}')
            windowed = frozenset(range(num_layers)) - set(global_layers)
        super().__init__(
            arch,
            out_indices=[i % num_layers for i in out_indices],
            out_type=out_type,
            with_cls_token=with_cls_token,
            frozen_stages=frozen_stages,
            **kwargs,
        )
        self.with_cp = with_cp
        self.window_size = window_size
        self.windowed = windowed
        reading = self.layers[:-1] if out_type == 'cls_token' else self.layers
        self._add_state([reading], [self.embed_dims], state_dim, discretization, input_norm)
        if frozen_stages > 0:
            self._freeze_stages()

    def _check_arch(self, arch: str | dict, out_type: str) -> int:
        """Returns the number of layers."""
        if isinstance(arch, str):
            require(arch.lower() in self.arch_zoo, 'arch', arch, f'a dict or one of {tuple(self.arch_zoo)}')
            return self.arch_zoo[arch.lower()]['num_layers']
        keys = ('embed_dims', 'num_layers', 'num_heads', 'feedforward_channels')
        require(isinstance(arch, dict) and set(keys) <= set(arch), 'arch', arch, f'a name or a dict with {keys}')
        least = 2 if out_type == 'cls_token' else 1
        require(arch['num_layers'] >= least, 'num_layers', arch['num_layers'], f'{least} or more with {out_type=}')
        return arch['num_layers']

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the features.

        Args:
            x (Tensor): Images, (batch, in_channels, H, W), any H and W.

        Returns:
            tuple[Tensor, ...]: Features of the layers in ``out_indices``, in the form that ``out_type`` says: maps are
            (batch, D, ⌈H / patch_size⌉, ⌈W / patch_size⌉).
        """
        x, hw = self.patch_embed(x)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        pos_embed = resize_pos_embed(
            self.pos_embed, self.patch_resolution, hw, self.interpolate_mode, self.num_extra_tokens
        )
        x = self.pre_norm(self.drop_after_pos(x + pos_embed))
        state = Carried()
        self._enter_stage(0, x, state)
        outs = []
        for i, layer in enumerate(self.layers):
            x = self._layer(state, 0, layer, x, *((hw, self.window_size) if i in self.windowed else ()))
            if i == self.num_layers - 1 and self.final_norm:
                x = self.ln1(x)
            if i in self.out_indices:
                outs.append(self._format_output(x, hw))
        return tuple(outs)

    def _freeze_stages(self) -> None:
        super()._freeze_stages()
        self._freeze_state(1)

    def train(self, mode: bool = True) -> S6LAViT:
        """Like the base class, but frozen layers stay in eval mode and it returns self."""
        super().train(mode)
        if self.frozen_stages > 0:
            self._freeze_stages()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter and number of depths, for layer-wise learning-rate decay.

        Args:
            param_name (str): Name of the parameter.
            prefix (str): Prefix of the backbone's parameters in the model. Defaults to ''.

        Returns:
            tuple[int, int]: The base class's answer. The cell has the depth of the last layer, the initial state that
            of the stem.
        """
        depth, num_depths = super().get_layer_depth(param_name, prefix)
        if param_name.startswith(prefix):
            state_depth = self._state_depth(param_name[len(prefix) :], [self.num_layers])
            depth = depth if state_depth is None else state_depth
        return depth, num_depths

    def optional_keys(self) -> tuple[str, ...]:
        """Keys that depend on ``out_type``: the norm of the averaged map and the read of the last layer."""
        return 'ln2.', f'layers.{self.num_layers - 1}.read.'

    def convert_checkpoint(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fits a checkpoint of another image size, or of another ``out_type`` or ``with_cls_token``.

        Raises:
            ValueError: If the position embedding is of another image size that was not square.
        """
        state_dict = dict(state_dict)
        if not hasattr(self.layers[-1], 'read'):
            state_dict.pop(f'layers.{self.num_layers - 1}.read.weight', None)
        extra = int('cls_token' in state_dict)
        if self.cls_token is None:
            state_dict.pop('cls_token', None)
        pos_embed = state_dict.get('pos_embed')
        if pos_embed is None or pos_embed.shape == self.pos_embed.shape or extra < self.num_extra_tokens:
            return state_dict
        num_patches = pos_embed.shape[1] - extra
        pos_embed = pos_embed[:, extra - self.num_extra_tokens :]
        if num_patches != self.patch_resolution[0] * self.patch_resolution[1]:
            side = isqrt(num_patches)
            if side**2 != num_patches:
                raise ValueError(
                    f'the checkpoint has a position embedding of {num_patches} patches, which is no square, and '
                    f'img_size={self.img_size} has {self.patch_resolution}: set img_size to that of the checkpoint'
                )
            pos_embed = resize_pos_embed(
                pos_embed, (side, side), self.patch_resolution, self.interpolate_mode, self.num_extra_tokens
            )
        state_dict['pos_embed'] = pos_embed
        return state_dict
