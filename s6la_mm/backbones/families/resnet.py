"""The facts of S6LAResNet: mmdet's ResNet and ResNeXt."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...checkpoint.layouts import Layout
from ...checkpoint.surgery import Item, Items
from .family import Family, Size
from .networks import load

_FC = (r'fc\.(weight|bias)', r'head.\1')
_LAYOUTS = (
    Layout(
        'rla',  # the models of hfzhang31/RLA, whose first convolutions see [x, h]
        ('stages.0.0.conv1.weight', 'conv_outs.0.weight', 'recurrent_convs.0.weight'),
        (*((rf'stages\.{i}\.(.+)', rf'layer{i + 1}.\1') for i in range(4)),),
        (r'conv_outs\..+', r'recurrent_convs\..+', r'stage_bns\..+', r'bn2\..+', r'fc\..+'),
        ('split_reads',),
    ),
    Layout(
        'timm-deep-stem',  # resnet50d and its like
        ('conv1.0.weight', 'layer1.0.conv1.weight'),
        ((r'conv1\.(\d)\.(.+)', r'stem.\1.\2'), (r'bn1\.(.+)', r'stem.7.\1'), _FC),
    ),
    # mmdet, mmpretrain, torchvision and timm agree; so do S6LA files that keep the reads in the first convolutions.
    Layout('resnet', ('layer1.0.conv1.weight',), (_FC,), (), ('split_reads',)),
)


def _split_reads(items: Items, target: dict[str, Tensor]) -> None:
    """Splits first convolutions that see [x, h], D + n channels, into the plain convolution and the read.

    conv([x, h]) = conv1(x) + read(h). Where n is not the backbone's state_dim, channels of the read are cut off, or
    zeros are added, which read nothing.
    """
    for key in [key for key in items if re.fullmatch(r'layer\d+\.\d+\.conv1\.weight', key) and key in target]:
        item, plain = items[key], target[key]
        size, wanted = list(item.tensor.shape), list(plain.shape)
        if len(size) != 4 or size[1] <= wanted[1] or size[:1] + size[2:] != wanted[:1] + wanted[2:]:
            continue
        weight, read = item.tensor.split([wanted[1], size[1] - wanted[1]], dim=1)
        items[key] = Item(weight, item.sources, [*item.notes, f'input channels 0 to {wanted[1] - 1}'])
        name = key.replace('conv1', 'read')
        notes = [f'input channels {wanted[1]} to {size[1] - 1}']
        # A file with cells is fitted to another state_dim as a whole, by resize_state.
        if name in target and target[name].shape[1] != read.shape[1] and 'initial_state' not in items:
            notes.append(f'{read.shape[1]} state channels made {target[name].shape[1]}')
            read = F.pad(read, (0, 0, 0, 0, 0, target[name].shape[1] - read.shape[1]))  # cuts where that is negative
        items[name] = Item(read, item.sources, notes)


class _ResNets(Family):
    """mmdet has two classes; mmseg's ResNet knows ``multi_grid`` and ``contract_dilation``, too."""

    def plain_type(self, options: Mapping[str, Any], scope: str | None = None) -> str:
        if options.get('groups', 1) > 1:
            return 'mmdet.ResNeXt'
        return 'mmseg.ResNet' if scope == 'mmseg' else self.plain_name


def _torchvision(backbone: nn.Module, source: dict[str, Tensor], size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    block = Bottleneck if 'layer1.0.conv3.weight' in source else BasicBlock
    filters, channels, *_ = source['layer1.0.conv2.weight'].shape
    groups = filters // channels
    width = 64 if groups == 1 else filters // groups
    network = ResNet(block, list(backbone.stage_blocks), groups=groups, width_per_group=width)
    load(network, source)
    return nn.Sequential(*list(network.children())[:-2]).eval()


def _timm(backbone: nn.Module, source: dict[str, Tensor], size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    network = ResNet(
        Bottleneck if 'layer1.0.conv3.weight' in source else BasicBlock,
        list(backbone.stage_blocks),
        stem_type='deep',
        stem_width=source['conv1.0.weight'].shape[0],
        avg_down='layer2.0.downsample.1.weight' in source and source['layer2.0.downsample.1.weight'].ndim == 4,
    )
    load(network, source)
    return network.eval().forward_features


RESNET = _ResNets(
    name='S6LAResNet',
    module='s6la_resnet',
    plain_name='mmdet.ResNet',
    layouts=_LAYOUTS,
    transforms=dict(split_reads=_split_reads),
    networks={'resnet': ('torchvision', _torchvision), 'timm-deep-stem': ('timm', _timm)},
    sizes=(
        *(
            Size(f'r{depth}', f'ResNet-{depth}', dict(depth=depth, out_indices=(3,)), channels)
            for depth, channels in ((18, 512), (34, 512), (50, 2048), (101, 2048), (152, 2048))
        ),
        *(
            Size(
                f'x{depth}-32x4d',
                f'ResNeXt-{depth} 32×4d',
                dict(depth=depth, groups=32, base_width=4, out_indices=(3,)),
                2048,
            )
            for depth in (50, 101)
        ),
    ),
    small=dict(depth=18, base_channels=8, stem_channels=8),
    image_size=320,
    channels_last=True,
    measured_with=dict(norm_eval=False),
    relatives={'RLA': 'RLAResNet'},
)
