"""Defects of a COCO annotation file that the COCO API hides or trips over."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .findings import Finding

if TYPE_CHECKING:
    from typing import TypeGuard  # Python 3.10

# COCO rounds to hundredths, and annotators end a box on the border: a pixel over the edge is no mistake.
TOLERANCE = 1.0


class CocoFile:
    """An annotation file in COCO's layout.

    Args:
        path (str): The file.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is no JSON object with lists of images, annotations and categories.
    """

    def __init__(self, path: str) -> None:
        with open(path, encoding='utf-8') as file:
            try:
                content = json.load(file)
            except ValueError as error:
                raise ValueError(f'{path} is no JSON: {error}') from error
        for key, fields in _FIELDS.items():
            if not isinstance(content, dict) or not isinstance(content.get(key), list):
                raise ValueError(f'{path} has no list {key!r}: it is no COCO annotation file')
            for entry in content[key]:
                lacking = [field for field in fields if field not in entry]
                if lacking:
                    raise ValueError(f'{path}: an entry of {key!r} has no {", ".join(lacking)}: {str(entry)[:80]}')
        self.images: list[dict] = content['images']
        self.annotations: list[dict] = content['annotations']
        self.categories: list[dict] = content['categories']

    def check(self, split: str, classes: Sequence[str] | None, poly2mask: bool = True) -> Iterator[Finding]:
        """Finds the defects of the entries; files are not looked at.

        Args:
            split (str): Name of the split in findings.
            classes (Sequence[str], optional): Classes that the config trains.
            poly2mask (bool): Whether ``LoadAnnotations`` makes bitmaps of the masks.

        Yields:
            Finding: One defect.
        """
        yield from self._check_ids(split)
        yield from self._check_classes(split, classes)
        images = {image['id']: image for image in self.images}
        categories = {category['id'] for category in self.categories}
        for annotation in self.annotations:
            where = f'annotation {annotation["id"]}'
            image = images.get(annotation['image_id'])
            if image is None:
                yield Finding('annotation-without-image', split, where, f'image_id {annotation["image_id"]!r}')
                continue
            where += f' of {image["file_name"]}'
            if annotation['category_id'] not in categories:
                yield Finding('unknown-category', split, where, f'category_id {annotation["category_id"]!r}')
            yield from _check_box(annotation['bbox'], image, split, where)
            yield from _check_mask(annotation, image, split, where, poly2mask)
        with_objects = {a['image_id'] for a in self.annotations if not a.get('iscrowd')}
        for image in self.images:
            if image['id'] not in with_objects:
                yield Finding('empty-image', split, image['file_name'])

    def _check_ids(self, split: str) -> Iterator[Finding]:
        for kind, entries, key in (
            ('duplicate-image-id', self.images, 'id'),
            ('duplicate-annotation-id', self.annotations, 'id'),
            ('duplicate-file', self.images, 'file_name'),
        ):
            for value, count in Counter(entry[key] for entry in entries).items():
                if count > 1:
                    yield Finding(kind, split, f'{key} {value}', f'{count} times')

    def _check_classes(self, split: str, classes: Sequence[str] | None) -> Iterator[Finding]:
        names = [category['name'] for category in self.categories]
        for name in classes or ():
            if name not in names:
                yield Finding('missing-class', split, f'class {name!r}', f'categories: {", ".join(names[:5])} ...')
        if classes:
            for name in names:
                if name not in classes:
                    yield Finding('unused-category', split, f'category {name!r}')


_FIELDS = dict(
    images=('id', 'file_name', 'width', 'height'),
    annotations=('id', 'image_id', 'category_id', 'bbox'),
    categories=('id', 'name'),
)


def _check_box(box: object, image: dict, split: str, where: str) -> Iterator[Finding]:
    if not _are_numbers(box) or len(box) != 4 or box[2] < 1 or box[3] < 1:
        yield Finding('degenerate-box', split, where, f'bbox {box}')
        return
    x, y, w, h = box
    width, height = image['width'], image['height']
    if min(x, y) < -TOLERANCE or x + w > width + TOLERANCE or y + h > height + TOLERANCE:
        yield Finding('box-outside-image', split, where, f'bbox {box} in {width} x {height}')


def _check_mask(annotation: dict, image: dict, split: str, where: str, poly2mask: bool) -> Iterator[Finding]:
    mask = annotation.get('segmentation')
    if mask is None:
        return
    width, height = image['width'], image['height']
    if isinstance(mask, dict):
        problem = _rle_problem(mask, width, height)
        if problem:
            yield Finding('broken-rle', split, where, problem)
        if not poly2mask and not annotation.get('iscrowd'):
            yield Finding('rle-without-poly2mask', split, where)
        return
    if not isinstance(mask, list) or not mask:
        yield Finding('broken-polygon', split, where, f'segmentation {str(mask)[:40]}')
        return
    for number, polygon in enumerate(mask):
        if not _are_numbers(polygon) or len(polygon) < 6 or len(polygon) % 2:
            yield Finding('broken-polygon', split, where, f'part {number}: {str(polygon)[:40]}')
        elif (
            min(polygon) < -TOLERANCE
            or max(polygon[::2]) > width + TOLERANCE
            or max(polygon[1::2]) > height + TOLERANCE
        ):
            yield Finding('broken-polygon', split, where, f'part {number} leaves the image of {width} x {height}')


def _rle_problem(rle: dict, width: int, height: int) -> str | None:
    if list(rle.get('size', ())) != [height, width]:
        return f'size {rle.get("size")}, the image has height {height}, width {width}'
    counts = rle.get('counts')
    try:
        runs = _decode_counts(counts) if isinstance(counts, str) else counts
    except (IndexError, ValueError):
        return 'counts cannot be decoded'
    if not _are_numbers(runs) or min(runs, default=0) < 0 or sum(runs) != width * height:
        return f'counts do not add up to {height} x {width}'
    return None


def _decode_counts(text: str) -> list[int]:
    """Run lengths of COCO's compressed RLE: base 32 digits, lowest first, as differences to the run before the last."""
    runs: list[int] = []
    position = 0
    while position < len(text):
        value = shift = 0
        while True:
            digit = ord(text[position]) - 48
            if not 0 <= digit < 64:
                raise ValueError(text[position])
            value |= (digit & 0x1F) << shift
            position += 1
            shift += 5
            if not digit & 0x20:
                break
        if digit & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs


def _are_numbers(values: object) -> TypeGuard[list[float]]:
    return isinstance(values, list) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )
