"""Write the table of all backbones against their bases, parameters and FLOPs, between two marks of docs/model_zoo.md.

Everything is computed on PyTorch's meta device, which knows shapes and no numbers: no weights, seconds for all.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from mmdet.models import PyramidVisionTransformerV2, ResNet, ResNeXt
from mmpretrain.models import SwinTransformer, VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from s6la_mm.backbones import S6LAPVTv2, S6LAResNet, S6LASwin, S6LAViT

BEGIN, END = '<!-- table of tools/make_model_table.py -->', '<!-- end of the table -->'
PATH = Path(__file__).parents[1] / 'docs' / 'model_zoo.md'
SIZE = 224  # of the square images, as in tables of classifiers
NUM_CLASSES = 1000


class Model(NamedTuple):
    """A row: a plain backbone, the S6LA one, and the channels that a classifier on top of them sees."""

    arch: str  # the name as in config files, and on the command line of benchmark_backbone.py
    name: str
    plain: Callable[[], nn.Module]
    s6la: Callable[[], nn.Module]
    channels: int


def models() -> list[Model]:
    """All rows of the table."""
    rows = []

    def add(arch: str, name: str, classes: tuple[type, type], channels: int, *args, **options) -> None:
        plain, s6la = (partial(cls, *args, **options) for cls in classes)
        rows.append(Model(arch, name, plain, s6la, channels))

    for depth, channels in ((18, 512), (34, 512), (50, 2048), (101, 2048), (152, 2048)):
        add(f'r{depth}', f'ResNet-{depth}', (ResNet, S6LAResNet), channels, depth=depth, out_indices=(3,))
    resnext = dict(depth=101, groups=32, base_width=4, out_indices=(3,))
    add('x101-32x4d', 'ResNeXt-101 32×4d', (ResNeXt, S6LAResNet), 2048, **resnext)
    for arch, name, base, channels in (
        ('deit-ti', 'DeiT-tiny', 'deit-tiny', 192),
        ('deit-s', 'DeiT-small', 'deit-small', 384),
        ('deit-b', 'DeiT-base', 'deit-base', 768),
        ('vit-l', 'ViT-large', 'large', 1024),
    ):
        add(arch, name, (VisionTransformer, S6LAViT), channels, base)
    for base, channels in (('tiny', 768), ('small', 768), ('base', 1024), ('large', 1536)):
        add(f'swin-{base[0]}', f'Swin-{base}', (SwinTransformer, S6LASwin), channels, base)
    for base, options in S6LAPVTv2.arch_zoo.items():
        classes = (PyramidVisionTransformerV2, S6LAPVTv2)
        channels = 8 * options['embed_dims']
        add(f'pvtv2-{base}', f'PVTv2-{base.upper()}', classes, channels, **dict(options, out_indices=(3,)))
    return rows


def count(make: Callable[[], nn.Module], channels: int) -> tuple[int, int]:
    """Parameters and FLOPs of a backbone with a linear classifier of 1000 classes.

    Args:
        make: Builds the backbone.
        channels: Channels that the classifier sees.

    Returns:
        Parameters, and multiply-adds for one image of 224 × 224 pixels: those of convolutions, matrix products and
        attention; element-wise operations, the update of the state among them, are not counted.
    """
    # The bases read their drop path rates out of a linspace: those need values.
    linspace = partial(torch.linspace, device='cpu')
    with torch.device('meta'), mock.patch('torch.linspace', linspace), torch.no_grad():
        backbone = make()
        backbone.requires_grad_(False)
        backbone.eval()  # which returns nothing in some of the bases
        with FlopCounterMode(display=False) as counter:
            backbone(torch.empty(1, 3, SIZE, SIZE))
    parameters = sum(p.numel() for p in backbone.parameters()) + (channels + 1) * NUM_CLASSES
    return parameters, counter.get_total_flops() // 2 + channels * NUM_CLASSES


def table(rows: list[Model]) -> list[str]:
    """The lines of the table."""
    lines = [
        '| | parameters | with S6LA | | GFLOPs | with S6LA | |',
        '|---|---:|---:|---:|---:|---:|---:|',
    ]
    for row in rows:
        (plain, plain_flops), (s6la, s6la_flops) = (count(make, row.channels) for make in (row.plain, row.s6la))
        lines.append(
            f'| {row.name} | {plain / 1e6:.2f} M | {s6la / 1e6:.2f} M | +{s6la / plain - 1:.1%} '
            f'| {plain_flops / 1e9:.2f} | {s6la_flops / 1e9:.2f} | +{s6la_flops / plain_flops - 1:.1%} |'
        )
    return lines


def replace(text: str, lines: list[str]) -> str:
    """Puts the table between the marks of a document.

    Raises:
        SystemExit: If the document does not have both marks once.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f'error: {PATH} needs the lines {BEGIN!r} and {END!r} once each: the table goes between them')
    before, _, rest = text.partition(BEGIN)
    return '\n'.join([f'{before}{BEGIN}', '', *lines, '', END]) + rest.partition(END)[2]


def main() -> None:
    """Writes the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    lines = table(models())
    PATH.write_text(replace(PATH.read_text(encoding='utf-8'), lines), encoding='utf-8')
    print('\n'.join([*lines, f'written to {PATH}']))


if __name__ == '__main__':
    main()
