#!/usr/bin/env python
"""Writes model-index.yml and the metafile of each config folder, by which `mim` and mmengine find configs by name.

They say what a config trains and on what. Results and weights are added by hand where a training has finished: entries
that are there are kept. Until then words are in the place of the weights: `mim download` wants an entry and shows it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
NO_WEIGHTS = 'no weights are published yet'
PAPER = 'https://arxiv.org/abs/2502.10463'
# What a config's name says of its data; the first that fits.
DATA = {
    'coco-panoptic': ('COCO', 'Panoptic Segmentation'),
    'coco': ('COCO', 'Object Detection'),
    'voc0712': ('Pascal VOC 2007 and 2012', 'Object Detection'),
    'lvis-v1': ('LVIS v1', 'Object Detection'),
    'shapes': ('Generated shapes', 'Object Detection'),
    'cityscapes-': ('Cityscapes', 'Semantic Segmentation'),  # with the size of the crops
    'cityscapes': ('Cityscapes', 'Object Detection'),
    'voc12aug': ('Pascal VOC 2012 + Aug', 'Semantic Segmentation'),
    'ade20k': ('ADE20K', 'Semantic Segmentation'),
    'camvid': ('CamVid', 'Semantic Segmentation'),
    'in1k': ('ImageNet-1k', 'Image Classification'),
}
METHODS = dict(
    atss='ATSS',
    cascade_rcnn='Cascade Mask R-CNN',
    deeplabv3plus='DeepLabV3+',
    deformable_detr='Deformable DETR',
    dino='DINO',
    faster_rcnn='Faster R-CNN',
    fcn='FCN',
    imagenet='Classification',
    mask2former='Mask2Former',
    mask_rcnn='Mask R-CNN',
    quickstart='Quickstart',
    retinanet='RetinaNet',
    segformer='SegFormer',
    sem_fpn='Semantic FPN',
    sparse_rcnn='Sparse R-CNN',
    upernet='UPerNet',
)


def metafile(folder: str, before: dict) -> dict:
    """The content of a folder's metafile.

    Args:
        folder (str): Name below configs.
        before (dict): The content so far, whose results and weights stay.

    Returns:
        dict: For yaml.
    """
    known = {model['Name']: model for model in before.get('Models', [])}
    collection = f'S6LA {METHODS[folder]}'
    models = []
    for path in sorted((ROOT / 'configs' / folder).glob('*.py')):
        data, task = next(value for key, value in DATA.items() if key in path.stem)
        old = known.get(path.stem, {})
        models.append(
            {
                'Name': path.stem,
                'In Collection': collection,
                'Config': f'configs/{folder}/{path.name}',
                'Metadata': {'Training Data': data, 'Task': task},
                **({'Results': old['Results']} if 'Results' in old else {}),
                'Weights': old.get('Weights', NO_WEIGHTS),
            }
        )
    return dict(Collections=[dict(Name=collection, Paper=PAPER, README='docs/model_zoo.md')], Models=models)


def index() -> dict[str, dict]:
    """All files, by their paths from the root of the repository."""
    files = {}
    for folder in METHODS:
        path = f'configs/{folder}/metafile.yml'
        before = (ROOT / path).read_text(encoding='utf-8') if (ROOT / path).is_file() else '{}'
        files[path] = metafile(folder, yaml.safe_load(before))
    return {'model-index.yml': dict(Import=list(files)), **files}


def main() -> None:
    """Writes the files."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for path, content in index().items():
        (ROOT / path).write_text(yaml.safe_dump(content, sort_keys=False), encoding='utf-8')


if __name__ == '__main__':
    main()
