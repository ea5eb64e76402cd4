"""Small networks of the packages that checkpoints come from, each beside the S6LA backbone that starts from it."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import nn

pytest.importorskip('mmpretrain')
timm = pytest.importorskip('timm')
import torchvision  # noqa: E402
from backbone_checks import randomize  # noqa: E402
from timm.models.convnext import ConvNeXt as TimmConvNeXt  # noqa: E402
from timm.models.pvt_v2 import PyramidVisionTransformerV2 as TimmPVT  # noqa: E402
from timm.models.resnet import Bottleneck as TimmBottleneck  # noqa: E402
from timm.models.resnet import ResNet as TimmResNet  # noqa: E402
from timm.models.swin_transformer import SwinTransformer as TimmSwin  # noqa: E402
from timm.models.vision_transformer import VisionTransformer as TimmViT  # noqa: E402

from s6la_mm.backbones import S6LAConvNeXt, S6LAPVTv2, S6LAResNet, S6LASwin, S6LAViT  # noqa: E402

VIT = dict(arch=dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32), img_size=32, patch_size=8)
SWIN = dict(arch=dict(embed_dims=8, depths=[1, 2], num_heads=[1, 2]), img_size=64, window_size=4, out_indices=(1,))
PVT = dict(embed_dims=8, num_layers=[1, 2, 1, 1], num_heads=[1, 2, 2, 4], sr_ratios=[4, 2, 2, 1], mlp_ratios=[2] * 4)
CONVNEXT = dict(arch=dict(depths=[1, 2, 1, 1], channels=[8, 16, 16, 24]))
CONVNEXT_V2 = CONVNEXT | dict(use_grn=True, layer_scale_init_value=0.0)


class Source(NamedTuple):
    """A kind of checkpoint.

    Attributes:
        layout (str): Its name in the family's layouts.
        plain (Callable[[], nn.Module]): Builds the network.
        features (Callable[[nn.Module, torch.Tensor], torch.Tensor]): Its features, given the network and images.
        s6la (Callable[[], nn.Module]): Builds the backbone.
        size (int): Of the images.
        names (Callable[[dict], dict]): What its file calls a tensor, where that is not what the network calls it.
    """

    layout: str
    plain: Callable[[], nn.Module]
    features: Callable[[nn.Module, torch.Tensor], torch.Tensor]
    s6la: Callable[[], nn.Module]
    size: int
    names: Callable[[dict], dict] = dict


def _torchvision_resnet(network, x):
    return nn.Sequential(*list(network.children())[:-2]).eval()(x)


def _timm_swin(network, x):
    return network.forward_features(x).permute(0, 3, 1, 2)


def _torchvision_swin(network, x):
    return network.norm(network.features(x)).permute(0, 3, 1, 2)


def _timm_pvt(network, x):
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6  # mmdet's; timm has the authors' 1e-5 behind patch embeddings and reductions
    return network.forward_features(x)


def authors_swin(state):
    """The names of Swin's authors, where patch merging ends a stage; timm moved it to the start of the next one."""
    renamed = {}
    for key, tensor in state.items():
        match = re.fullmatch(r'layers\.(\d+)\.downsample\.(.+)', key)
        key = f'layers.{int(match[1]) - 1}.downsample.{match[2]}' if match else key
        renamed[key.replace('head.fc.', 'head.')] = tensor
    return {'layers.0.blocks.0.attn.relative_position_index': torch.zeros(16, 16), **renamed}


def authors_pvt(state):
    """The names of PVTv2's authors."""
    renamed = {}
    for key, tensor in state.items():
        key = re.sub(r'^patch_embed\.', 'patch_embed1.', key)
        key = re.sub(r'^stages\.(\d)\.downsample\.', lambda m: f'patch_embed{int(m[1]) + 1}.', key)
        key = re.sub(r'^stages\.(\d)\.blocks\.', lambda m: f'block{int(m[1]) + 1}.', key)
        key = re.sub(r'^stages\.(\d)\.norm\.', lambda m: f'norm{int(m[1]) + 1}.', key)
        renamed[key.replace('mlp.dwconv.', 'mlp.dwconv.dwconv.')] = tensor
    return renamed


def authors_convnext(state):
    """The names of ConvNeXt's authors, and the shape of what normalises responses in V2."""
    renamed = {}
    for key, tensor in state.items():
        key = re.sub(r'^stem\.', 'downsample_layers.0.', key)
        key = re.sub(r'^stages\.(\d)\.downsample\.', r'downsample_layers.\1.', key)
        key = key.replace('.blocks.', '.').replace('conv_dw', 'dwconv').replace('mlp.fc', 'pwconv')
        if '.grn.' in key:
            key = key.replace('mlp.grn.weight', 'grn.gamma').replace('mlp.grn.bias', 'grn.beta')
            tensor = tensor.view(1, 1, 1, -1)
        renamed[key.replace('head.norm.', 'norm.').replace('head.fc.', 'head.')] = tensor
    return renamed


def _timm_convnext(network, x):
    return network.forward_head(network.forward_features(x), pre_logits=True)


def _torchvision_convnext():
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(*c) for c in ((8, 16, 1), (16, 16, 2), (16, 24, 1), (24, None, 1))], num_classes=5)


def _vit(**options):
    return TimmViT(img_size=32, patch_size=8, embed_dim=16, depth=3, num_heads=2, mlp_ratio=2, num_classes=5, **options)


_SWIN = partial(TimmSwin, img_size=64, embed_dim=8, depths=(1, 2), num_heads=(1, 2), window_size=4, num_classes=5)
_PVT = partial(
    TimmPVT,
    depths=(1, 2, 1, 1),
    embed_dims=(8, 16, 16, 32),
    num_heads=(1, 2, 2, 4),
    sr_ratios=(4, 2, 2, 1),
    mlp_ratios=(2, 2, 2, 2),
    num_classes=5,
)
_CONVNEXT = partial(TimmConvNeXt, depths=(1, 2, 1, 1), dims=(8, 16, 16, 24), num_classes=5)
_CONVNEXT_V2 = partial(_CONVNEXT, use_grn=True, ls_init_value=None)

SOURCES = {
    'torchvision ResNet-18': Source(
        'resnet',
        torchvision.models.resnet18,
        _torchvision_resnet,
        partial(S6LAResNet, 18),
        40,
    ),
    'torchvision ResNeXt': Source(
        'resnet',
        partial(torchvision.models.resnext50_32x4d, num_classes=5),
        _torchvision_resnet,
        partial(S6LAResNet, 50, groups=32, base_width=4),
        40,
    ),
    'timm ResNet': Source(
        'resnet',
        partial(TimmResNet, TimmBottleneck, (3, 4, 6, 3), num_classes=5),
        TimmResNet.forward_features,
        partial(S6LAResNet, 50),
        40,
    ),
    'timm ResNet-D': Source(
        'timm-deep-stem',
        partial(TimmResNet, TimmBottleneck, (3, 4, 6, 3), stem_type='deep', stem_width=32, avg_down=True),
        TimmResNet.forward_features,
        partial(S6LAResNet, 50, deep_stem=True, avg_down=True),
        64,
    ),
    'timm ViT': Source('timm', _vit, lambda n, x: n.forward_features(x)[:, 0], partial(S6LAViT, **VIT), 32),
    'torchvision ViT': Source(
        'torchvision',
        partial(torchvision.models.VisionTransformer, 32, 8, 3, 2, 16, 32, num_classes=5),
        lambda n, x: n.encoder(torch.cat((n.class_token.expand(len(x), -1, -1), n._process_input(x)), 1))[:, 0],
        partial(S6LAViT, **VIT),
        32,
    ),
    'timm Swin': Source('timm', _SWIN, _timm_swin, partial(S6LASwin, **SWIN), 64),
    "authors' Swin": Source('swin', _SWIN, _timm_swin, partial(S6LASwin, **SWIN), 64, authors_swin),
    'torchvision Swin': Source(
        'torchvision',
        partial(torchvision.models.SwinTransformer, [4, 4], 8, [1, 2], [1, 2], [4, 4], num_classes=5),
        _torchvision_swin,
        partial(S6LASwin, **SWIN),
        64,
    ),
    'timm PVTv2': Source('timm', _PVT, _timm_pvt, partial(S6LAPVTv2, **PVT), 64),
    "authors' PVTv2": Source('pvt', _PVT, _timm_pvt, partial(S6LAPVTv2, **PVT), 64, authors_pvt),
    'timm ConvNeXt': Source('timm', _CONVNEXT, _timm_convnext, partial(S6LAConvNeXt, **CONVNEXT), 64),
    'timm ConvNeXt V2': Source('timm', _CONVNEXT_V2, _timm_convnext, partial(S6LAConvNeXt, **CONVNEXT_V2), 64),
    'timm ConvNeXt with convolutions': Source(
        'timm', partial(_CONVNEXT, conv_mlp=True), _timm_convnext, partial(S6LAConvNeXt, **CONVNEXT), 64
    ),
    "authors' ConvNeXt V2": Source(
        'convnext',
        _CONVNEXT_V2,
        _timm_convnext,
        partial(S6LAConvNeXt, **CONVNEXT_V2, linear_pw_conv=False),
        64,
        authors_convnext,
    ),
    'torchvision ConvNeXt': Source(
        'torchvision',
        _torchvision_convnext,
        lambda n, x: n.classifier[0](n.avgpool(n.features(x))).flatten(1),
        partial(S6LAConvNeXt, **CONVNEXT),
        64,
    ),
}


def make_source(name):
    """The network with random weights, in evaluation mode, and the state dict of its file."""
    source = SOURCES[name]
    network = randomize(source.plain())
    network.eval()
    return network, source.names(network.state_dict())


def rla_state(depth=18, state_dim=8):
    """A file in the published layout of RLA-Net: first convolutions that see D + n channels, in ``stages.S.B``."""
    network = S6LAResNet(depth, state_dim=state_dim)
    state = {}
    for key, tensor in randomize(network).state_dict().items():
        if key.startswith(('cells.', 'initial_state')) or '.read.' in key:
            continue
        if re.fullmatch(r'layer\d\.\d+\.conv1\.weight', key):
            read = torch.randn(tensor.shape[0], state_dim, *tensor.shape[2:]) * 0.05
            tensor = torch.cat((tensor, read), dim=1)
        state[re.sub(r'^layer(\d)\.', lambda m: f'stages.{int(m[1]) - 1}.', key)] = tensor
    for stage, channels in enumerate((64, 128, 256, 512)):
        state[f'conv_outs.{stage}.weight'] = torch.randn(state_dim, channels, 1, 1)
        state[f'recurrent_convs.{stage}.weight'] = torch.randn(state_dim, state_dim, 3, 3)
        for block in range(2):
            state[f'stage_bns.{stage}.{block}.weight'] = torch.ones(state_dim)
    state['bn2.weight'] = torch.ones(state_dim)
    state['fc.weight'] = torch.randn(5, 512 + state_dim)
    return state
