"""Small data sets in the formats of several packages, and their entries in a config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (40, 32)
NAMES = ('cat', 'dog')
LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
LOAD_MASKS = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
LOAD_SEG = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]


def draw(path: Path, size: tuple[int, int] = SIZE, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(list(str(path).encode())).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(noise).save(path, **options)


def coco(root: Path, split: str = 'train', edit=lambda content: None, pipeline: list = LOAD, **options: Any) -> dict:
    """A data set of two images with two objects each, its file changed by ``edit``."""
    images, annotations = [], []
    for i in range(2):
        draw(root / split / f'{i}.jpg')
        images.append(dict(id=i, file_name=f'{i}.jpg', width=SIZE[0], height=SIZE[1]))
        for j in range(2):
            box = [2 + 18 * j, 4, 12, 20]
            x, y, w, h = box
            polygon = [x, y, x + w, y, x + w, y + h]
            entry = dict(id=2 * i + j, image_id=i, category_id=1 + j, bbox=box, area=240, iscrowd=0)
            annotations.append({**entry, 'segmentation': [polygon]})
    categories = [dict(id=1 + i, name=name) for i, name in enumerate(NAMES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    edit(content)
    (root / f'{split}.json').write_text(json.dumps(content))
    where = dict(data_root=str(root), ann_file=f'{split}.json', data_prefix=dict(img=split))
    return {**dict(type='CocoDataset', **where, metainfo=dict(classes=NAMES), pipeline=pipeline), **options}


def voc(root: Path, objects: list[tuple[str, list]], size: bool = True, **options: Any) -> dict:
    parts = [
        f'<object><name>{name}</name><bndbox>'
        + ''.join(f'<{key}>{value}</{key}>' for key, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), box))
        + '</bndbox></object>'
        for name, box in objects
    ]
    shape = f'<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height></size>' if size else ''
    draw(root / 'VOC2007/JPEGImages/a.jpg')
    (root / 'VOC2007/Annotations').mkdir(exist_ok=True)
    (root / 'VOC2007/Annotations/a.xml').write_text(f'<annotation>{shape}{"".join(parts)}</annotation>')
    (root / 'train.txt').write_text('a\n')
    where = dict(data_root=str(root), ann_file='train.txt', data_prefix=dict(sub_data_root='VOC2007/'))
    return dict(type='VOCDataset', **where, metainfo=dict(classes=NAMES), pipeline=LOAD, **options)


def scenes(root: Path, labels: list[np.ndarray | Image.Image], suffix: str = '.jpg', **options: Any) -> dict:
    for i, label in enumerate(labels):
        draw(root / f'images/{i}{suffix}', format='JPEG')
        (root / 'labels').mkdir(exist_ok=True)
        (label if isinstance(label, Image.Image) else Image.fromarray(label)).save(root / f'labels/{i}.png')
    where = dict(data_root=str(root), data_prefix=dict(img_path='images', seg_map_path='labels'))
    return dict(type='BaseSegDataset', **where, metainfo=dict(classes=NAMES), **{'pipeline': LOAD_SEG, **options})


def halves(left: int, right: int) -> np.ndarray:
    return np.repeat(np.uint8([[left, right]]), 20, 1).repeat(32, 0)
