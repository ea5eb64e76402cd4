"""Defects of a COCO annotation file that the COCO API hides or trips over."""

from __future__ import annotations

import json
import math
import os.path as osp
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mmengine.registry import METRICS

from ...config_types import find_type, type_name
from .findings import Finding

if TYPE_CHECKING:
    from typing import TypeGuard  # Python 3.10

# COCO rounds to hundredths, and annotators end a box on the border: a pixel over the edge is no mistake.
TOLERANCE = 1.0
# Without one of them in an annotation the COCO API or mmdet's CocoDataset stops.
LOADED_KEYS = ('id', 'bbox', 'area', 'category_id')


class CocoFile:
    """An annotation file in COCO's layout, of objects or of the segments of panoptic images.

    Args:
        path (str): The file.

    Attributes:
        faulty (set): The ids of images with defects, once they are checked.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is no JSON object with lists of images and categories.
    """

    def __init__(self, path: str) -> None:
        with open(path, encoding='utf-8') as file:
            try:
                content = json.load(file)
            except ValueError as error:
                raise ValueError(f'{path} is no JSON: {error}') from error
        if isinstance(content, dict):
            content.setdefault('annotations', [])  # a test set
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
        self.is_panoptic = any('segments_info' in annotation for annotation in self.annotations)
        if self.is_panoptic:
            self.annotations = [
                {**segment, 'image_id': annotation['image_id']}
                for annotation in self.annotations
                for segment in annotation.get('segments_info', ())
            ]
        self.faulty: set = set()

    def check(
        self,
        split: str,
        classes: Sequence[str] = (),
        evaluated: Sequence[str] = (),
        with_mask: bool = False,
        poly2mask: bool = True,
        stopped: Collection | None = None,
    ) -> Iterator[Finding]:
        """Finds the defects of the entries; files are not looked at.

        Args:
            split (str): Name of the split in findings.
            classes (Sequence[str]): Classes that the config trains. Defaults to none.
            evaluated (Sequence[str]): The keys that an evaluation needs. Defaults to none.
            with_mask (bool): Whether masks are loaded or evaluated. Defaults to False.
            poly2mask (bool): Whether ``LoadAnnotations`` makes bitmaps of the masks. Defaults to True.
            stopped (Collection, optional): The ids of images at which the loader stops, so that the keys that it reads
                are looked for there. Defaults to None: at all.

        Yields:
            Finding: One defect.
        """
        yield from self._check_ids(split)
        yield from self._check_classes(split, classes)
        images = {image['id']: image for image in self.images}
        categories = {category['id'] for category in self.categories}
        for annotation in self.annotations:
            where = f'annotation {annotation.get("id")}'
            image = images.get(annotation['image_id'])
            if image is None:
                yield Finding('annotation-without-image', split, where, f'image_id {annotation["image_id"]!r}')
                continue
            where += f' of {_name(image)}'
            needed = LOADED_KEYS if stopped is None or image['id'] in stopped else ()
            found = list(_check_keys(annotation, (*needed, *evaluated), split, where))
            if annotation.get('category_id') not in categories and 'category_id' in annotation:
                found.append(Finding('unknown-category', split, where, f'category_id {annotation["category_id"]!r}'))
            size = (image.get('width') or math.inf, image.get('height') or math.inf)
            if annotation.get('bbox') is not None:
                found += check_box(annotation['bbox'], size, split, where)
            if with_mask and not self.is_panoptic:
                found += _check_mask(annotation, size, split, where, poly2mask)
            if found:
                self.faulty.add(image['id'])
                yield from found

    def check_order(self, split: str, classes: Sequence[str], labels: dict) -> Iterator[Finding]:
        """Finds classes that are trained under the name of another one: mmdet numbers them in the order of the file.

        Args:
            split (str): Name of the split in findings.
            classes (Sequence[str]): Classes that the config trains.
            labels (dict): The label that the data set gives to each id of a category.
        """
        names = {category['id']: category['name'] for category in self.categories}
        if not set(classes) <= set(names.values()):
            return  # which is found, and shifts the labels
        for category, label in labels.items():
            name = names.get(category)
            if name in classes and label < len(classes) and classes[label] != name:
                detail = f'it gets label {label}, whose name in the config is {classes[label]!r}'
                yield Finding('class-order', split, f'category {name!r}', detail)

    def _check_ids(self, split: str) -> Iterator[Finding]:
        annotations = [] if self.is_panoptic else self.annotations  # segments are numbered in each image
        for kind, key, values in (
            ('duplicate-image-id', 'id', [image['id'] for image in self.images]),
            ('duplicate-annotation-id', 'id', [a['id'] for a in annotations if 'id' in a]),
            ('duplicate-file', 'file_name', [_name(image) for image in self.images]),
        ):
            for value, count in Counter(values).items():
                if count > 1:
                    yield Finding(kind, split, f'{key} {value}', f'{count} times')

    def _check_classes(self, split: str, classes: Sequence[str]) -> Iterator[Finding]:
        names = [category['name'] for category in self.categories]
        for name in classes:
            if name not in names:
                yield Finding('missing-class', split, f'class {name!r}', f'categories: {", ".join(names[:5])} ...')
        yield from unused_names({name: '' for name in names}, classes, split)


_FIELDS = dict(images=('id',), categories=('id', 'name'), annotations=('image_id',))


def metrics_of(evaluator: Any) -> Iterator[tuple[set[str], dict]]:
    """The metrics of a config's evaluator: the names of the class and of those that it derives from, and the options.

    Args:
        evaluator (Any): A metric, a list of them, or an ``Evaluator`` with metrics.
    """
    metrics = evaluator.get('metrics', evaluator) if isinstance(evaluator, dict) else evaluator
    for metric in [metrics] if isinstance(metrics, dict) else metrics or ():
        kind = find_type(metric['type'], METRICS)
        yield {base.__name__ for base in getattr(kind, '__mro__', ())}, metric


def read_by_evaluation(evaluator: Any, is_lvis: bool) -> tuple[bool, bool]:
    """Whether the evaluation reads ``iscrowd``, and masks, from the annotation file.

    Args:
        evaluator (Any): As the config has it; None is taken for COCO's.
        is_lvis (bool): Whether the data set is LVIS, which has no crowds.
    """
    if evaluator is None:
        return not is_lvis, False
    crowds = with_mask = False
    for names, metric in metrics_of(evaluator):
        if names & {'CocoMetric', 'CocoPanopticMetric'} and metric.get('ann_file') and not metric.get('format_only'):
            crowds = crowds or 'LVISMetric' not in names
            with_mask = with_mask or 'segm' in metric.get('metric', 'bbox')
    return crowds, with_mask


def check_evaluator(evaluator: Any, path: str, entries: Sequence[dict], split: str) -> Iterator[Finding]:
    """Annotation files of an evaluation that are not there, or that are not about the images of the data set.

    Args:
        evaluator (Any): As the config has it.
        path (str): The annotation file of the data set.
        entries (Sequence[dict]): What the data set gives.
        split (str): Name of the split in findings.
    """
    if (
        isinstance(evaluator, dict) and type_name(evaluator) == 'MultiDatasetsEvaluator'
    ):  # a metric for each of several data sets
        return
    for _, metric in metrics_of(evaluator):
        file = metric.get('ann_file')
        if not isinstance(file, str) or '://' in file or osp.realpath(file) == osp.realpath(path):
            continue
        try:
            known = {image['id'] for image in CocoFile(file).images}
        except FileNotFoundError:
            yield Finding('missing-file', split, file)
        except ValueError as error:
            yield Finding('broken-file', split, file, str(error))
        else:
            unknown = [entry['img_id'] for entry in entries if entry['img_id'] not in known]
            if unknown:
                detail = f'it lacks {len(unknown)} images of {path}, the first is {unknown[0]!r}'
                yield Finding('evaluator-file', split, file, detail)


def unused_names(names: dict[str, str], classes: Sequence[str], split: str) -> Iterator[Finding]:
    """The names in a data set that are no classes of the config.

    Args:
        names (dict[str, str]): Names, and what is said of each.
        classes (Sequence[str]): The classes; without any, nothing is said.
        split (str): Name of the split in findings.
    """
    spellings = {' '.join(name.lower().split()): name for name in classes}
    for name, detail in names.items() if classes else ():
        if name in classes:
            continue
        meant = spellings.get(' '.join(name.lower().split()))
        if meant is None:
            yield Finding('unused-category', split, f'category {name!r}', detail)
        else:
            detail = f'the class is {meant!r}' + (f'; {detail}' if detail else '')
            yield Finding('misspelt-class', split, f'category {name!r}', detail)


def check_box(box: object, size: tuple[float, float], split: str, where: str) -> Iterator[Finding]:
    """Finds what is wrong with a box of COCO.

    Args:
        box (object): Left, top, width and height, if it is right.
        size (tuple[float, float]): Width and height of the image.
        split (str): Name of the split in findings.
        where (str): What the finding names.
    """
    if not _are_numbers(box) or len(box) != 4 or box[2] < 1 or box[3] < 1:
        yield Finding('degenerate-box', split, where, f'bbox {box}')
        return
    x, y, w, h = box
    width, height = size
    if min(x, y) < -TOLERANCE or x + w > width + TOLERANCE or y + h > height + TOLERANCE:
        yield Finding('box-outside-image', split, where, f'bbox {box} in {width} x {height}')


def _name(image: dict) -> str:
    """What names an image to its owner; LVIS has addresses."""
    return str(image.get('file_name', image.get('coco_url', image['id'])))


def _check_keys(annotation: dict, needed: Sequence[str], split: str, where: str) -> Iterator[Finding]:
    for key in needed:
        if annotation.get(key) is None:
            yield Finding('missing-key', split, where, f'{key!r} is null' if key in annotation else f'no key {key!r}')
    area = annotation.get('area')
    if isinstance(area, (int, float)) and not area > 0:
        yield Finding('zero-area', split, where, f"'area' is {area}")
    if split == 'train' and annotation.get('ignore'):
        yield Finding('ignored-object', split, where, f"'ignore' is {annotation['ignore']}")


def _check_mask(
    annotation: dict, size: tuple[float, float], split: str, where: str, poly2mask: bool
) -> Iterator[Finding]:
    mask = annotation.get('segmentation')
    width, height = size
    if not mask:
        detail = f"'segmentation' is {mask}" if 'segmentation' in annotation else "no key 'segmentation'"
        yield Finding('missing-mask', split, where, detail)
        return
    if isinstance(mask, dict):
        problem = _rle_problem(mask, width, height)
        if problem:
            yield Finding('broken-rle', split, where, problem)
        if not poly2mask and not annotation.get('iscrowd'):
            yield Finding('rle-without-poly2mask', split, where)
        return
    if not isinstance(mask, list):
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


def _rle_problem(rle: dict, width: float, height: float) -> str | None:
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
