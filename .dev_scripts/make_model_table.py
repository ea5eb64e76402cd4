"""Write the tables of docs/model_zoo.md, parameters and FLOPs, each between two marks.

The one of all backbones against their bases is computed on PyTorch's meta device, which knows shapes and no numbers: no
weights, seconds for all. The one of detectors and segmentors runs each once, which takes minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import s6la_mm  # noqa: F401  (registers the backbones)
from s6la_mm.analysis.flops import count_flops
from s6la_mm.backbones.architectures import Architecture, architectures, on_meta_device
from s6la_mm.common.cli import clear_errors, load_config
from s6la_mm.common.configs import build_model
from s6la_mm.common.files import replace_between

BEGIN, END = '<!-- table of .dev_scripts/make_model_table.py -->', '<!-- end of the table -->'
BEGIN_CONFIGS = '<!-- detectors and segmentors by .dev_scripts/make_model_table.py -->'
END_CONFIGS = '<!-- end of the detectors and segmentors -->'
ROOT = Path(__file__).parents[1]
PATH = ROOT / 'docs' / 'model_zoo.md'
SIZE = 224  # of the square images, as in tables of classifiers
NUM_CLASSES = 1000
SHAPES = dict(mmdet=(800, 1344), mmseg=(512, 512))  # of get_flops.py
CONFIGS = {
    'atss/atss_s6la-r50_fpn_1x_coco': 'ATSS, S6LA-ResNet-50',
    'sparse_rcnn/sparse-rcnn_s6la-r50_fpn_1x_coco': 'Sparse R-CNN, 100 proposals, S6LA-ResNet-50',
    'sparse_rcnn/sparse-rcnn_s6la-r50_fpn_300-proposals_crop-ms-480-800-3x_coco': (
        'Sparse R-CNN, 300 proposals, S6LA-ResNet-50'
    ),
    'deformable_detr/deformable-detr_s6la-r50_16xb2-50e_coco': 'Deformable DETR, S6LA-ResNet-50',
    'deformable_detr/deformable-detr-refine-twostage_s6la-r50_16xb2-50e_coco': (
        'Deformable DETR, two stages, S6LA-ResNet-50'
    ),
    'dino/dino-4scale_s6la-r50_8xb2-12e_coco': 'DINO, 4 scales, S6LA-ResNet-50',
    'mask2former/mask2former_s6la-r50_8xb2-lsj-50e_coco': 'Mask2Former, instances, S6LA-ResNet-50',
    'mask2former/mask2former_s6la-swin-t_8xb2-lsj-50e_coco': 'Mask2Former, instances, S6LA-Swin-T',
    'mask2former/mask2former_s6la-r50_8xb2-lsj-50e_coco-panoptic': 'Mask2Former, panoptic, S6LA-ResNet-50',
    'mask2former/mask2former_s6la-swin-t_8xb2-lsj-50e_coco-panoptic': 'Mask2Former, panoptic, S6LA-Swin-T',
    'mask2former/mask2former_s6la-r50_8xb2-160k_ade20k-512x512': 'Mask2Former, ADE20K, S6LA-ResNet-50',
    'mask2former/mask2former_s6la-swin-t_8xb2-160k_ade20k-512x512': 'Mask2Former, ADE20K, S6LA-Swin-T',
    'segformer/segformer_s6la-pvtv2-b0_8xb2-160k_ade20k-512x512': 'SegFormer, ADE20K, S6LA-PVTv2-B0',
    'segformer/segformer_s6la-r50_8xb2-160k_ade20k-512x512': 'SegFormer, ADE20K, S6LA-ResNet-50',
    'segformer/segformer_s6la-swin-t_8xb2-160k_ade20k-512x512': 'SegFormer, ADE20K, S6LA-Swin-T',
}


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


def config_table(names: Iterable[str]) -> list[str]:
    """The lines of the table of detectors and segmentors.

    Args:
        names (Iterable[str]): Keys of CONFIGS.
    """
    lines = ['| | parameters | of it S6LA | GFLOPs | of it S6LA |', '|---|---:|---:|---:|---:|']
    for name in names:
        cfg = load_config(str(ROOT / 'configs' / f'{name}.py'), {})
        rows = {row: numbers for row, *numbers in count_flops(build_model(cfg), *SHAPES[cfg.default_scope])}
        (state, state_flops), (parameters, flops) = rows['  of it S6LA'], rows['whole model']
        lines.append(
            f'| {CONFIGS[name]} | {parameters / 1e6:.2f} M | {state / 1e6:.2f} M '
            f'| {flops / 1e9:.1f} | {state_flops / 1e9:.1f} |'
        )
    return lines


def replace(text: str, lines: list[str], begin: str = BEGIN, end: str = END) -> str:
    """Puts a table between its marks in a document.

    Raises:
        SystemExit: If the document does not have both marks once.
    """
    with clear_errors():
        return replace_between(text, begin, end, lines, PATH)


def main() -> None:
    """Writes the tables."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    backbones, configs = table(architectures().values()), config_table(CONFIGS)
    text = replace(PATH.read_text(encoding='utf-8'), backbones)
    PATH.write_text(replace(text, configs, BEGIN_CONFIGS, END_CONFIGS), encoding='utf-8')
    print('\n'.join([*backbones, *configs, f'written to {PATH}']))


if __name__ == '__main__':
    main()
