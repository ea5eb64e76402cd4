"""The facts of S6LAPVTv2: mmdet's PyramidVisionTransformerV2."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoint.layouts import Layout
from ...checkpoint.surgery import Item, Items, fit_ones
from .family import Family, Size
from .networks import load, openmmlab

# Layers and the ratios that differ from the base class's, as in mmdet's configs.
ARCH_ZOO: dict[str, dict[str, Any]] = {
    'b0': dict(embed_dims=32, num_layers=[2, 2, 2, 2]),
    'b1': dict(embed_dims=64, num_layers=[2, 2, 2, 2]),
    'b2': dict(embed_dims=64, num_layers=[3, 4, 6, 3]),
    'b3': dict(embed_dims=64, num_layers=[3, 4, 18, 3]),
    'b4': dict(embed_dims=64, num_layers=[3, 8, 27, 3]),
    'b5': dict(embed_dims=64, num_layers=[3, 6, 40, 3], mlp_ratios=[4, 4, 4, 4]),
}


def _rules(block: str, norm: str, convolution: str) -> tuple[tuple[str, str], ...]:
    """Rules for the four stages, given how blocks, norms and depth-wise convolutions are called."""
    return tuple(
        (pattern, rf'layers.{i}.{name}')
        for i in range(4)
        for stage in (block.format(i, i + 1) + r'\.(\d+)\.',)
        for pattern, name in (
            (stage + r'(norm[12]\..+)', r'1.\1.\2'),
            (stage + r'attn\.(q|kv)\.(weight|bias)', r'1.\1.attn.attn.\2_\3'),
            (stage + r'attn\.proj\.(.+)', r'1.\1.attn.attn.out_proj.\2'),
            (stage + r'attn\.((?:sr|norm)\..+)', r'1.\1.attn.\2'),
            (stage + r'mlp\.fc1\.(.+)', r'1.\1.ffn.layers.0.\2'),
            (stage + rf'mlp\.{convolution}\.(weight|bias)', r'1.\1.ffn.layers.1.\2'),
            (stage + r'mlp\.fc2\.(.+)', r'1.\1.ffn.layers.4.\2'),
            (norm.format(i, i + 1) + r'\.(.+)', r'2.\1'),
        )
    )


_LAYOUTS = (
    Layout(
        'pvt',  # PVTv2's authors
        ('patch_embed1.proj.weight', 'block1.0.attn.q.weight'),
        (
            *_rules('block{1}', 'norm{1}', r'dwconv\.dwconv'),
            *((rf'patch_embed{i + 1}\.proj\.(.+)', rf'layers.{i}.0.projection.\1') for i in range(4)),
            *((rf'patch_embed{i + 1}\.norm\.(.+)', rf'layers.{i}.0.norm.\1') for i in range(4)),
        ),
        (),
        ('join_q_and_kv', 'fit_ones'),
    ),
    Layout(
        'timm',
        ('patch_embed.proj.weight', 'stages.0.blocks.0.attn.q.weight'),
        (
            *_rules(r'stages\.{0}\.blocks', r'stages\.{0}\.norm', 'dwconv'),
            (r'patch_embed\.proj\.(.+)', r'layers.0.0.projection.\1'),
            (r'patch_embed\.norm\.(.+)', r'layers.0.0.norm.\1'),
            (r'stages\.(\d+)\.downsample\.proj\.(.+)', r'layers.\1.0.projection.\2'),
            (r'stages\.(\d+)\.downsample\.norm\.(.+)', r'layers.\1.0.norm.\2'),
        ),
        (),
        ('join_q_and_kv', 'fit_ones'),
    ),
    Layout('mmdet', ('layers.0.0.projection.weight', 'layers.0.1.0.attn.attn.in_proj_weight')),
)


def _join_q_and_kv(items: Items, target: dict[str, Tensor]) -> None:
    """Makes one input projection of attention out of q and kv."""
    for key in [key for key in items if re.search(r'\.attn\.attn\.q_(weight|bias)$', key)]:
        q, kv = items.pop(key), items.pop(key.replace('.q_', '.kv_'), None)
        if kv is None:
            raise ValueError(f'{q.sources[0]} is in the checkpoint without its counterpart for k and v')
        tensor = torch.cat((q.tensor, kv.tensor))
        items[key.replace('.q_', '.in_proj_')] = Item(tensor, q.sources + kv.sources, ['q and kv joined'])


def _timm(backbone: nn.Module, source: dict[str, Tensor], size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    from timm.models.pvt_v2 import PyramidVisionTransformerV2, checkpoint_filter_fn

    network = PyramidVisionTransformerV2(
        depths=backbone.num_layers,
        embed_dims=[backbone.embed_dims * heads for heads in backbone.num_heads],
        num_heads=backbone.num_heads,
        sr_ratios=backbone.sr_ratios,
        mlp_ratios=[
            blocks[0].ffn.layers[0].out_channels / blocks[0].ffn.embed_dims for _, blocks, _ in backbone.layers
        ],
        num_classes=0,
    )
    load(network, checkpoint_filter_fn(source, network))  # which knows the authors' names, too
    # The authors' norms behind the patch embeddings and the reductions have 1e-5, mmdet's 1e-6: no matter of weights.
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = backbone.layers[0][2].eps
    return network.eval().forward_features


PVT = Family(
    name='S6LAPVTv2',
    module='s6la_pvt',
    plain_name='mmdet.PyramidVisionTransformerV2',
    layouts=_LAYOUTS,
    transforms=dict(join_q_and_kv=_join_q_and_kv, fit_ones=fit_ones, linear_to_convolution=fit_ones),
    networks={'pvt': ('timm', _timm), 'timm': ('timm', _timm), 'mmdet': ('mmdet', openmmlab)},
    sizes=tuple(
        Size(f'pvtv2-{arch}', f'PVTv2-{arch.upper()}', dict(sizes, out_indices=(3,)), 8 * sizes['embed_dims'])
        for arch, sizes in ARCH_ZOO.items()
    ),
    small=dict(embed_dims=8, num_layers=[2, 2, 2, 2], drop_path_rate=0.0),
    measured_with=dict(drop_path_rate=0.0),
)
