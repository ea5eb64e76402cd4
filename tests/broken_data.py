"""Copies of data sets with one defect of every kind at seeded places, and what a check must find in them."""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

Found = set[tuple[str, str, str]]  # kind, split, where
DROPPED = ('degenerate-box', 'unknown-category', 'missing-key', 'zero-area', 'ignored-object')


def link_coco(source: Path, target: Path, splits: dict[str, tuple[str, str]]) -> None:
    """A copy with the same file names, whose files can be changed one by one."""
    (target / 'annotations').mkdir(parents=True)
    for folder, name in splits.values():
        shutil.copytree(source / folder, target / folder)
        shutil.copy(source / 'annotations' / name, target / 'annotations' / name)


def break_coco(root: Path, splits: dict[str, tuple[str, str]], seed: int) -> Found:
    """Plants one defect of every kind of a COCO data set.

    Args:
        root (Path): A data set in COCO layout without errors, changed in place.
        splits (dict[str, tuple[str, str]]): Folder of images and name of the annotation file, for train and val.
        seed (int): Chooses images, annotations and values.

    Returns:
        Found: What must be found, and nothing else.
    """
    rng = random.Random(seed)
    folder, name = splits['train']
    path = root / 'annotations' / name
    data = json.loads(path.read_text())
    images = {image['id']: image for image in data['images']}
    with_objects = sorted({a['image_id'] for a in data['annotations'] if not a.get('iscrowd')})
    *chosen, duplicate, shared_id = rng.sample(with_objects, 8)
    files = [images[i]['file_name'] for i in chosen]
    polygons = [a for a in data['annotations'] if isinstance(a.get('segmentation'), list) and not a.get('iscrowd')]
    usable = [a for a in polygons if a['image_id'] != shared_id]
    rng.shuffle(usable)
    found: Found = set()
    dropped = set()  # annotations that the loader does not give to the training

    def broken_file(kind: str, content: bytes | None) -> None:
        file = root / folder / files.pop()
        file.unlink() if content is None else file.write_bytes(content)
        found.add((kind, 'train', str(file)))

    broken_file('missing-image', None)
    broken_file('unreadable-image', rng.choice([b'', b'<html>404</html>']))
    whole = (root / folder / files[-1]).read_bytes()
    broken_file('truncated-image', whole[: int(len(whole) * rng.uniform(0.3, 0.9))])
    odd = root / folder / files.pop()
    with Image.open(odd) as image:
        image.resize((image.width + rng.randint(1, 9), image.height)).save(odd)
    found.add(('size-mismatch', 'train', str(odd)))
    # The same content under another name, and the same file by a link.
    val_folder = root / splits['val'][0]
    val_images = json.loads((root / 'annotations' / splits['val'][1]).read_text())['images']
    for link, val_image in zip((False, True), rng.sample(val_images, 2)):
        source, target = root / folder / files.pop(), val_folder / val_image['file_name']
        target.unlink()
        target.symlink_to(source) if link else shutil.copy(source, target)
        found.add(('leakage', 'val', str(target)))
        with Image.open(target) as image:
            if image.size != (val_image['width'], val_image['height']):
                found.add(('size-mismatch', 'val', str(target)))

    def change(kind: str, **values: object) -> dict:
        annotation = usable.pop()
        where = f'annotation {annotation["id"]} of {images[annotation["image_id"]]["file_name"]}'
        annotation.update(values)
        found.add((kind, 'train', where))
        if kind in DROPPED:
            dropped.add(annotation['id'])
        return annotation

    next_id = max(a['id'] for a in data['annotations']) + 1
    change('degenerate-box', bbox=[10, 10, rng.choice([0, -5, 0.3]), 20])
    change('degenerate-box', bbox=[10, 10, float('nan'), 20])
    change('degenerate-box', bbox=[10, 10, 20])
    annotation = usable[-1]
    width = images[annotation['image_id']]['width']
    change('box-outside-image', bbox=[width - 5, 1, 5 + rng.uniform(1.5, 50), 5])
    change('box-outside-image', bbox=[-rng.uniform(1.5, 50), 1, 60, 5])
    change('unknown-category', category_id=9999)
    change('broken-polygon', segmentation=[[1, 1, 2, 2]])
    change('broken-polygon', segmentation=[[1, 1, 2, 2, 3, 3, 4]])
    change('missing-mask', segmentation=rng.choice([[], None]))
    del change('missing-mask')['segmentation']
    del change('missing-key')[rng.choice(['area', 'bbox'])]
    change('zero-area', area=0)
    change('ignored-object', ignore=1)
    change('broken-polygon', segmentation=[[1, 1, 5, 1, 5, float('inf')]])
    change('broken-polygon', segmentation=[[1, 1, 5, 1, 99999, 5]])
    annotation = usable[-1]
    size = [images[annotation['image_id']][key] for key in ('height', 'width')]
    change('broken-rle', segmentation=dict(size=size, counts=[10, 20]))
    change('broken-rle', segmentation=dict(size=[3, 3], counts=[9]))
    change('broken-rle', segmentation=dict(size=size, counts='~~~'))
    # A whole mask as RLE is no defect, compressed or not.
    for annotation in (usable.pop(), usable.pop()):
        height, width = (images[annotation['image_id']][key] for key in ('height', 'width'))
        bitmap = np.zeros((height, width), np.uint8, order='F')
        bitmap[2:9, 3:7] = 1
        rle = coco_mask.encode(bitmap)
        counts = rle['counts'].decode()
        annotation['segmentation'] = dict(size=[height, width], counts=counts)
    lost = dict(copy.deepcopy(usable[-1]), id=next_id, image_id=123456789)
    data['annotations'].append(lost)
    found.add(('annotation-without-image', 'train', f'annotation {next_id}'))
    twin = copy.deepcopy(usable[-1])
    data['annotations'].append(twin)
    found.add(('duplicate-annotation-id', 'train', f'id {twin["id"]}'))
    data['images'].append(dict(images[duplicate], id=987654321))
    found.add(('duplicate-file', 'train', f'file_name {images[duplicate]["file_name"]}'))
    extra = dict(images[shared_id], file_name='extra' + Path(images[shared_id]['file_name']).suffix)
    shutil.copy(root / folder / images[shared_id]['file_name'], root / folder / extra['file_name'])
    data['images'].append(extra)
    found.add(('duplicate-image-id', 'train', f'id {shared_id}'))
    path.write_text(json.dumps(data))
    # What is left of images and classes.
    entries = {image['id']: image['file_name'] for image in data['images']}
    left = [a for a in data['annotations'] if a['id'] not in dropped | {next_id} and not a.get('iscrowd')]
    for i in entries.keys() - {a['image_id'] for a in left}:
        found.add(('empty-image', 'train', str(root / folder / entries[i])))
    for category in data['categories']:
        if category['id'] not in {a['category_id'] for a in left}:
            found.add(('class-without-objects', 'train', f'class {category["name"]!r}'))
    return found


def make_segmentation(root: Path, count: int = 5) -> None:
    """A data set in CamVid's layout without defects: random labels from 0 to 10 and 11 for unlabelled."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val', 'test'):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            name = f'{split}_{number}'
            pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / 'images' / split / f'{name}.jpg')
            labels = rng.integers(0, 12, (24, 32), dtype=np.uint8)
            Image.fromarray(labels).save(root / 'annotations' / split / f'{name}.png')


def break_segmentation(root: Path) -> Found:
    """Plants one defect of every kind of a segmentation data set, with five images a split, of which one stays good."""
    images, labels = root / 'images/train', root / 'annotations/train'
    (labels / 'train_0.png').unlink()
    Image.fromarray(np.full((24, 32), 77, np.uint8)).save(labels / 'train_1.png')
    Image.fromarray(np.zeros((24, 30), np.uint8)).save(labels / 'train_2.png')
    (labels / 'train_3.png').write_bytes(b'no image')
    val_image = root / 'images/val/val_1.jpg'
    shutil.copy(images / 'train_0.jpg', val_image)
    test_image = root / 'images/test/test_0.jpg'
    test_image.write_bytes(test_image.read_bytes()[:-40])
    return {
        ('missing-label-map', 'train', str(labels / 'train_0.png')),
        ('label-out-of-range', 'train', str(labels / 'train_1.png')),
        ('label-size-mismatch', 'train', str(labels / 'train_2.png')),
        ('unreadable-label-map', 'train', str(labels / 'train_3.png')),
        ('leakage', 'val', str(val_image)),
        ('truncated-image', 'test', str(test_image)),
    }
