"""The sizes that the S6LA backbones come in, each beside the plain network that it extends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import NamedTuple
from unittest import mock

import torch
from mmdet.models.backbones import PyramidVisionTransformerV2, ResNet, ResNeXt
from torch import nn

from ..environment import require_mmpretrain
from .s6la_pvt import S6LAPVTv2
from .s6la_resnet import S6LAResNet


class Architecture(NamedTuple):
    """A size of a backbone.

    Attributes:
        name (str): As on command lines: ``'r50'``, ``'swin-t'`` ...
        title (str): As in tables.
        plain (type): Class of the plain network.
        s6la (type): Class of the S6LA backbone.
        options (dict): What both are built with; they output the last stage, as for a classifier.
        channels (int): Channels of that output.
    """

    name: str
    title: str
    plain: type[nn.Module]
    s6la: type[nn.Module]
    options: dict
    channels: int

    @property
    def s6la_name(self) -> str:
        """The name as in ``--arch`` and in messages: ``'s6la_r50'``."""
        return 's6la_' + self.name.replace('-', '_')


@cache
def architectures() -> dict[str, Architecture]:
    """All sizes by name.

    Raises:
        ImportError: If mmpretrain, on which S6LAViT and S6LASwin stand, is not installed.
    """
    require_mmpretrain('The table of architectures')
    from mmpretrain.models.backbones import SwinTransformer, VisionTransformer

    from . import S6LASwin, S6LAViT

    rows = []
    for depth, channels in ((18, 512), (34, 512), (50, 2048), (101, 2048), (152, 2048)):
        options = dict(depth=depth, out_indices=(3,))
        rows.append(Architecture(f'r{depth}', f'ResNet-{depth}', ResNet, S6LAResNet, options, channels))
    for depth in (50, 101):
        options = dict(depth=depth, groups=32, base_width=4, out_indices=(3,))
        rows.append(
            Architecture(f'x{depth}-32x4d', f'ResNeXt-{depth} 32×4d', ResNeXt, S6LAResNet, options, channels=2048)
        )
    for name, title, arch, channels in (
        ('deit-ti', 'DeiT-tiny', 'deit-tiny', 192),
        ('deit-s', 'DeiT-small', 'deit-small', 384),
        ('deit-b', 'DeiT-base', 'deit-base', 768),
        ('vit-l', 'ViT-large', 'large', 1024),
    ):
        rows.append(Architecture(name, title, VisionTransformer, S6LAViT, dict(arch=arch), channels))
    for arch, channels in (('tiny', 768), ('small', 768), ('base', 1024), ('large', 1536)):
        rows.append(
            Architecture(f'swin-{arch[0]}', f'Swin-{arch}', SwinTransformer, S6LASwin, dict(arch=arch), channels)
        )
    for arch, sizes in S6LAPVTv2.arch_zoo.items():
        options = dict(sizes, out_indices=(3,))
        channels = 8 * sizes['embed_dims']
        title = f'PVTv2-{arch.upper()}'
        rows.append(Architecture(f'pvtv2-{arch}', title, PyramidVisionTransformerV2, S6LAPVTv2, options, channels))
    return {row.name: row for row in rows}


def find_architecture(name: str) -> Architecture:
    """An architecture by its name, however it is spelled: ``'s6la_swin_t'``, ``'S6LA-Swin-T'`` or ``'swin-t'``.

    Raises:
        ValueError: If there is none of that name; the message lists all.

    Example:
        >>> find_architecture('s6la_r50').title
        'ResNet-50'
    """
    key = name.lower().replace('_', '-').removeprefix('s6la-')
    key = {'vit-b': 'deit-b'}.get(key, key)  # one network, two recipes
    if key not in architectures():
        names = ', '.join(known.s6la_name for known in architectures().values())
        raise ValueError(f'{name!r} is no architecture: use one of {names}')
    return architectures()[key]


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Within it, networks are built without memory for their weights: what has shapes and no numbers takes no time.

    Example:
        >>> row = find_architecture('r152')
        >>> with on_meta_device():
        ...     sum(p.numel() for p in row.s6la(**row.options).parameters())
        58660928
    """
    # The bases read their drop path rates out of a linspace: those need values.
    with torch.device('meta'), mock.patch('torch.linspace', partial(torch.linspace, device='cpu')):
        yield
