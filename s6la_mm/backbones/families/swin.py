"""The facts of S6LASwin: mmpretrain's SwinTransformer."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import isqrt

from torch import Tensor, nn

from ...checkpoint.layouts import Layout
from ...checkpoint.surgery import Items
from .family import Family, Size
from .networks import load, openmmlab

_WB = r'(weight|bias)'
_BLOCK = (
    (rf'layers\.(\d+)\.blocks\.(\d+)\.(norm[12])\.{_WB}', r'stages.\1.blocks.\2.\3.\4'),
    (r'layers\.(\d+)\.blocks\.(\d+)\.attn\.(.+)', r'stages.\1.blocks.\2.attn.w_msa.\3'),
    (rf'layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc1\.{_WB}', r'stages.\1.blocks.\2.ffn.layers.0.0.\3'),
    (rf'layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc2\.{_WB}', r'stages.\1.blocks.\2.ffn.layers.1.\3'),
    (rf'patch_embed\.proj\.{_WB}', r'patch_embed.projection.\1'),
)
_BUFFERS = (r'.*\.attn\.relative_position_index', r'.*\.attn_mask')
_LAYOUTS = (
    Layout(
        'swin',  # Swin's authors, and timm before 0.9
        ('patch_embed.proj.weight', 'layers.0.blocks.0.attn.qkv.weight', 'layers.0.downsample.reduction.weight'),
        (*_BLOCK, (r'layers\.(\d+)\.downsample\.(.+)', r'stages.\1.downsample.\2')),
        _BUFFERS,
        ('reorder_patch_merging',),
    ),
    Layout(
        'timm',
        ('patch_embed.proj.weight', 'layers.0.blocks.0.attn.qkv.weight', 'layers.1.downsample.reduction.weight'),
        (
            *_BLOCK,
            *((rf'layers\.{i + 1}\.downsample\.(.+)', rf'stages.{i}.downsample.\1') for i in range(3)),
            (rf'head\.fc\.{_WB}', r'head.\1'),
        ),
        _BUFFERS,
        ('reorder_patch_merging',),
    ),
    Layout(
        'torchvision',
        ('features.0.0.weight', 'features.1.0.attn.relative_position_bias_table'),
        (
            (rf'features\.0\.0\.{_WB}', r'patch_embed.projection.\1'),
            (rf'features\.0\.2\.{_WB}', r'patch_embed.norm.\1'),
            *(
                rule
                for i in range(4)
                for rule in (
                    (rf'features\.{2 * i + 1}\.(\d+)\.(norm[12])\.(.+)', rf'stages.{i}.blocks.\1.\2.\3'),
                    (rf'features\.{2 * i + 1}\.(\d+)\.attn\.(.+)', rf'stages.{i}.blocks.\1.attn.w_msa.\2'),
                    (rf'features\.{2 * i + 1}\.(\d+)\.mlp\.0\.(.+)', rf'stages.{i}.blocks.\1.ffn.layers.0.0.\2'),
                    (rf'features\.{2 * i + 1}\.(\d+)\.mlp\.3\.(.+)', rf'stages.{i}.blocks.\1.ffn.layers.1.\2'),
                    (rf'features\.{2 * i + 2}\.(reduction|norm)\.(.+)', rf'stages.{i}.downsample.\1.\2'),
                )
            ),
        ),
        _BUFFERS,
        ('reorder_patch_merging',),
    ),
    # mmpretrain, mmdet and mmseg agree.
    Layout('mmpretrain', ('patch_embed.projection.weight', 'stages.0.blocks.0.attn.w_msa.qkv.weight')),
)


def _reorder_patch_merging(items: Items, target: dict[str, Tensor]) -> None:
    """Brings the 4 C inputs of Swin's patch merging into mmcv's order.

    The authors concatenate the four pixels of a patch, column by column: (pixel, C). mmcv's unfold has them row by
    row behind each channel: (C, pixel).
    """
    for key, item in items.items():
        if re.fullmatch(r'stages\.\d+\.downsample\.(reduction|norm)\.(weight|bias)', key):
            shape = item.tensor.shape
            pixels = item.tensor.reshape(*shape[:-1], 4, shape[-1] // 4)[..., [0, 2, 1, 3], :]
            item.tensor = pixels.transpose(-1, -2).reshape(shape)
            item.notes.append('inputs reordered')


def _window(source: dict[str, Tensor]) -> int:
    """Window size, from the (2 w − 1)² rows of a table of relative positions."""
    table = next(v for k, v in source.items() if k.endswith('relative_position_bias_table'))
    return (isqrt(table.shape[0]) + 1) // 2


def _timm(backbone: nn.Module, source: dict[str, Tensor], size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn

    network = SwinTransformer(
        img_size=size,
        window_size=_window(source),
        embed_dim=backbone.embed_dims,
        depths=backbone.depths,
        num_heads=backbone.num_heads,
        num_classes=0,
    )
    if 'layers.0.downsample.reduction.weight' in source:  # the authors' names
        source = checkpoint_filter_fn(source, network)
    load(network, source)
    network.eval()
    return lambda images: network.forward_features(images).permute(0, 3, 1, 2)


def _torchvision(backbone: nn.Module, source: dict[str, Tensor], size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    from torchvision.models import SwinTransformer

    window = [_window(source)] * 2
    network = SwinTransformer([4, 4], backbone.embed_dims, list(backbone.depths), list(backbone.num_heads), window)
    load(network, source)
    network.eval()
    return lambda images: network.norm(network.features(images)).permute(0, 3, 1, 2)


SWIN = Family(
    name='S6LASwin',
    module='s6la_swin',
    plain_name='mmpretrain.SwinTransformer',
    layouts=_LAYOUTS,
    transforms=dict(reorder_patch_merging=_reorder_patch_merging),
    networks={
        'swin': ('timm', _timm),
        'timm': ('timm', _timm),
        'torchvision': ('torchvision', _torchvision),
        'mmpretrain': ('mmpretrain', openmmlab),
    },
    sizes=tuple(
        Size(f'swin-{arch[0]}', f'Swin-{arch}', dict(arch=arch), channels)
        for arch, channels in (('tiny', 768), ('small', 768), ('base', 1024), ('large', 1536))
    ),
    small=dict(
        arch=dict(embed_dims=8, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8]),
        window_size=2,
        pad_small_map=True,
        drop_path_rate=0.0,
    ),
    measured_with=dict(drop_path_rate=0.0),
)
