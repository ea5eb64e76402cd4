"""Write the table of all backbones against their bases, parameters and FLOPs, between two marks of docs/model_zoo.md.

Everything is computed on PyTorch's meta device, which knows shapes and no numbers: no weights, seconds for all.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from s6la_mm.backbones.architectures import Architecture, architectures, on_meta_device
from s6la_mm.common.cli import clear_errors
from s6la_mm.common.files import replace_between

BEGIN, END = '<!-- table of .dev_scripts/make_model_table.py -->', '<!-- end of the table -->'
PATH = Path(__file__).parents[1] / 'docs' / 'model_zoo.md'
SIZE = 224  # of the square images, as in tables of classifiers
NUM_CLASSES = 1000


def count(cls: type[nn.Module], row: Architecture) -> tuple[int, int]:
    """Parameters and FLOPs of a backbone with a linear classifier of 1000 classes.

    Args:
        cls (type[nn.Module]): ``row.plain`` or ``row.s6la``.
        row (Architecture): The architecture.

    Returns:
        tuple[int, int]: Parameters, and multiply-adds for one image of 224 × 224 pixels: those of convolutions, matrix
        products and attention; element-wise operations, the update of the state among them, are not counted.
    """
    with on_meta_device(), torch.no_grad():
        backbone = cls(**row.options)
        backbone.requires_grad_(False)
        backbone.eval()  # which returns nothing in some of the bases
        with FlopCounterMode(display=False) as counter:
            backbone(torch.empty(1, 3, SIZE, SIZE))
    parameters = sum(p.numel() for p in backbone.parameters()) + (row.channels + 1) * NUM_CLASSES
    return parameters, counter.get_total_flops() // 2 + row.channels * NUM_CLASSES


def table(rows: Iterable[Architecture]) -> list[str]:
    """The lines of the table."""
    lines = [
        '| | parameters | with S6LA | | GFLOPs | with S6LA | |',
        '|---|---:|---:|---:|---:|---:|---:|',
    ]
    for row in rows:
        (plain, plain_flops), (s6la, s6la_flops) = (count(cls, row) for cls in (row.plain, row.s6la))
        lines.append(
            f'| {row.title} | {plain / 1e6:.2f} M | {s6la / 1e6:.2f} M | +{s6la / plain - 1:.1%} '
            f'| {plain_flops / 1e9:.2f} | {s6la_flops / 1e9:.2f} | +{s6la_flops / plain_flops - 1:.1%} |'
        )
    return lines


def replace(text: str, lines: list[str]) -> str:
    """Puts the table between the marks of a document.

    Raises:
        SystemExit: If the document does not have both marks once.
    """
    with clear_errors():
        return replace_between(text, BEGIN, END, lines, PATH)


def main() -> None:
    """Writes the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    lines = table(architectures().values())
    PATH.write_text(replace(PATH.read_text(encoding='utf-8'), lines), encoding='utf-8')
    print('\n'.join([*lines, f'written to {PATH}']))


if __name__ == '__main__':
    main()
