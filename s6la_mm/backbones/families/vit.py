"""The facts of S6LAViT: mmpretrain's VisionTransformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoint.layouts import Layout
from ...checkpoint.surgery import Item, Items
from .family import Family, Size
from .networks import load, openmmlab

_WB = r'(weight|bias)'
_LAYOUTS = (
    Layout(
        'timm',  # DeiT's authors too
        ('patch_embed.proj.weight', 'blocks.0.attn.qkv.weight'),
        (
            (rf'blocks\.(\d+)\.norm([12])\.{_WB}', r'layers.\1.ln\2.\3'),
            (rf'blocks\.(\d+)\.attn\.(qkv|proj)\.{_WB}', r'layers.\1.attn.\2.\3'),
            (rf'blocks\.(\d+)\.mlp\.fc1\.{_WB}', r'layers.\1.ffn.layers.0.0.\2'),
            (rf'blocks\.(\d+)\.mlp\.fc2\.{_WB}', r'layers.\1.ffn.layers.1.\2'),
            (rf'patch_embed\.proj\.{_WB}', r'patch_embed.projection.\1'),
            (rf'norm\.{_WB}', r'ln1.\1'),
        ),
        (),
        ('drop_distillation_token',),
    ),
    Layout(
        'torchvision',
        ('conv_proj.weight', 'encoder.layers.encoder_layer_0.ln_1.weight'),
        (
            (r'class_token', 'cls_token'),
            (r'encoder\.pos_embedding', 'pos_embed'),
            (rf'conv_proj\.{_WB}', r'patch_embed.projection.\1'),
            (rf'encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.{_WB}', r'layers.\1.ln\2.\3'),
            (rf'encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_{_WB}', r'layers.\1.attn.qkv.\2'),
            (rf'encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.{_WB}', r'layers.\1.attn.proj.\2'),
            (rf'encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.{_WB}', r'layers.\1.ffn.layers.0.0.\2'),
            (rf'encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.{_WB}', r'layers.\1.ffn.layers.1.\2'),
            (rf'encoder\.ln\.{_WB}', r'ln1.\1'),
            (rf'heads\.head\.{_WB}', r'head.\1'),
        ),
    ),
    Layout(
        'mmseg',
        ('patch_embed.projection.weight', 'layers.0.attn.attn.in_proj_weight'),
        (
            (rf'layers\.(\d+)\.attn\.attn\.in_proj_{_WB}', r'layers.\1.attn.qkv.\2'),
            (rf'layers\.(\d+)\.attn\.attn\.out_proj\.{_WB}', r'layers.\1.attn.proj.\2'),
        ),
        (),
        ('zero_patch_bias',),
    ),
    Layout('mmpretrain', ('patch_embed.projection.weight', 'layers.0.attn.qkv.weight')),
)


def _drop_distillation_token(items: Items, target: dict[str, Tensor]) -> None:
    """Takes the entry of DeiT's distillation token out of the position embedding; the token itself has no place."""
    if 'dist_token' in items and 'pos_embed' in items:
        item = items['pos_embed']
        item.tensor = torch.cat((item.tensor[:, :1], item.tensor[:, 2:]), dim=1)
        item.notes.append('without the entry of the distillation token')


def _zero_patch_bias(items: Items, target: dict[str, Tensor]) -> None:
    """Adds the bias that mmseg's patch embedding does without by default."""
    weight = items.get('patch_embed.projection.weight')
    if weight is not None and 'patch_embed.projection.bias' not in items:
        bias = weight.tensor.new_zeros(weight.tensor.shape[0])
        items['patch_embed.projection.bias'] = Item(bias, (), ['zeros, as the source has no bias'])


def _options(backbone: nn.Module, size: tuple[int, int]) -> dict[str, Any]:
    patch = backbone.patch_embed.projection.kernel_size[0]
    if backbone.out_type != 'cls_token' or size[0] != size[1]:
        raise ValueError(
            "--verify compares class tokens at square sizes: use out_type='cls_token' and a square img_size"
        )
    return dict(patch_size=patch, depth=backbone.num_layers, heads=backbone.arch_settings['num_heads'])


def _timm(backbone: nn.Module, source: dict[str, Tensor], size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    from timm.models.vision_transformer import VisionTransformer

    if 'dist_token' in source:
        raise ValueError('--verify has nothing to compare with: S6LAViT has no distillation token')
    options = _options(backbone, size)
    network = VisionTransformer(
        img_size=size,
        patch_size=options['patch_size'],
        depth=options['depth'],
        num_heads=options['heads'],
        embed_dim=backbone.embed_dims,
        mlp_ratio=backbone.arch_settings['feedforward_channels'] / backbone.embed_dims,
        num_classes=0,
    )
    load(network, source)
    network.eval()
    return lambda images: network.forward_features(images)[:, 0]


def _torchvision(backbone: nn.Module, source: dict[str, Tensor], size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    from torchvision.models import VisionTransformer

    options = _options(backbone, size)
    network = VisionTransformer(
        size[0],
        options['patch_size'],
        options['depth'],
        options['heads'],
        backbone.embed_dims,
        backbone.arch_settings['feedforward_channels'],
    )
    network.heads = nn.Identity()
    load(network, source)
    return network.eval()


VIT = Family(
    name='S6LAViT',
    module='s6la_vit',
    plain_name='mmpretrain.VisionTransformer',
    layouts=_LAYOUTS,
    transforms=dict(drop_distillation_token=_drop_distillation_token, zero_patch_bias=_zero_patch_bias),
    networks={
        'timm': ('timm', _timm),
        'torchvision': ('torchvision', _torchvision),
        'mmpretrain': ('mmpretrain', openmmlab),
    },
    sizes=(
        Size('deit-ti', 'DeiT-tiny', dict(arch='deit-tiny'), 192),
        Size('deit-s', 'DeiT-small', dict(arch='deit-small'), 384),
        Size('deit-b', 'DeiT-base', dict(arch='deit-base'), 768),
        Size('vit-l', 'ViT-large', dict(arch='large'), 1024),
    ),
    small=dict(
        arch=dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32),
        img_size=64,
        patch_size=16,
        out_type='featmap',
    ),
    measured_with=dict(drop_path_rate=0.0),
    head='head.layers.head',
    aliases={'vit-b': 'deit-b'},  # one network, two recipes
)
