"""What any data set gives for its samples, checked: classes, objects, files that are left out, names in XML files."""

from __future__ import annotations

import os
import os.path as osp
from collections import Counter
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ...common.cli import IMAGE_SUFFIXES
from ...common.configs import metainfo_of
from .coco import check_box, unused_names
from .findings import Finding
from .image_files import paths_of
from .loading import LoadedDataset


def check_classes(loaded: LoadedDataset, metainfo: dict) -> Iterator[Finding]:
    """Class names that are no list: one in brackets without a comma, or a file that is not there.

    Args:
        loaded (LoadedDataset): The data set.
        metainfo (dict): As the config has it.
    """
    classes = metainfo_of(loaded.built).get('classes')
    if isinstance(classes, str):
        detail = f"write ('{classes}',) with a comma for one class; there is no file of this name with one a line"
        yield Finding('classes-no-list', loaded.split, f'classes={classes!r}', detail)
    for key in metainfo:
        if key != 'classes' and key.lower() == 'classes':
            yield Finding('classes-no-list', loaded.split, f'metainfo.{key}', "the key is 'classes' in lower case")


def check_samples(loaded: LoadedDataset) -> Iterator[Finding]:
    """A data set that gives nothing, and files that it passes over."""
    passed_over = list(_other_files(loaded))
    yield from passed_over
    if not loaded.entries and hasattr(loaded.built, 'get_data_info') and loaded.is_there:
        reason = f'filter_cfg leaves out all {len(loaded.left_out)} images' if loaded.left_out else ''
        others = ', '.join(f'{finding.where}: {finding.detail}' for finding in passed_over[:1])
        name = getattr(loaded.built, 'ann_file', '') or loaded.type
        yield Finding('no-samples', loaded.split, name, reason or others or 'there is nothing in it')
    for entry in loaded.left_out:
        if any(not instance.get('ignore_flag') for instance in entry.get('instances', ())):
            yield Finding('left-out', loaded.split, name_of(entry))


def check_objects(loaded: LoadedDataset, with_mask: bool, has_coco_file: bool) -> Iterator[Finding]:
    """Images without objects, and boxes and masks of data sets that are no COCO file.

    Args:
        loaded (LoadedDataset): The data set.
        with_mask (bool): Whether masks are loaded.
        has_coco_file (bool): Its annotations are checked already.
    """
    for entry in [*loaded.entries, *loaded.left_out]:
        if 'instances' in entry and all(instance.get('ignore_flag') for instance in entry['instances']):
            yield Finding('empty-image', loaded.split, name_of(entry))
    for entry in () if has_coco_file else loaded.entries:
        size = (entry.get('width') or np.inf, entry.get('height') or np.inf)
        for number, instance in enumerate(entry.get('instances', ())):
            where = f'object {number} of {name_of(entry)}'
            mask = instance.get('mask')
            if with_mask and (mask is None or not len(mask)) and 'segments_info' not in entry:
                yield Finding('missing-mask', loaded.split, where)
            # CrowdHuman's boxes of whole people, beside those of what is seen of them, may leave the image.
            box = np.ravel(instance.get('bbox', ())).tolist()
            if instance.get('ignore_flag') or 'vbox' in instance or len(box) != 4:
                continue
            if all(isinstance(value, (int, float)) for value in box):
                box = [*box[:2], box[2] - box[0], box[3] - box[1]]
            yield from check_box(box, size, loaded.split, where)


def check_xml(loaded: LoadedDataset) -> Iterator[Finding]:
    """Names of objects in files like those of PASCAL VOC that are no classes, so that the loader drops them."""
    files: dict[str, list[str]] = {}
    for entry in loaded.entries + loaded.left_out:
        if osp.isfile(entry.get('xml_path', '')):
            for item in ElementTree.parse(entry['xml_path']).getroot().findall('object'):
                files.setdefault(item.findtext('name', ''), []).append(entry['xml_path'])
    details = {name: f'{len(paths)} objects, the first in {paths[0]}' for name, paths in files.items()}
    yield from unused_names(details, loaded.classes, loaded.split)


def name_of(entry: dict) -> str:
    """What names a sample to its owner."""
    return next(iter(map(str, paths_of(entry))), f'sample {entry.get("sample_idx", "")}'.strip())


def _other_files(loaded: LoadedDataset) -> Iterator[Finding]:
    """Image files in a folder of which a data set loads those with its suffix."""
    built: Any = loaded.built
    suffix = getattr(built, 'img_suffix', None) or getattr(built, 'extensions', None)  # of mmseg, of mmpretrain
    prefix = getattr(built, 'data_prefix', None)
    folder = (prefix.get('img_path') if isinstance(prefix, dict) else None) or ''
    ann_file = getattr(built, 'ann_file', None)
    if not suffix or not osp.isdir(folder) or (ann_file and not osp.isdir(ann_file)):
        return
    used = {osp.abspath(path) for entry in loaded.entries for path in (*paths_of(entry), entry.get('seg_map_path', ''))}
    others: Counter = Counter()
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            path = osp.join(parent, name)
            if not name.lower().endswith(IMAGE_SUFFIXES) or osp.abspath(path) in used:
                continue
            if isinstance(suffix, str) and name.lower().endswith(suffix.lower()) and not name.endswith(suffix):
                yield Finding('wrong-suffix', loaded.split, path, f'img_suffix is {suffix!r}')
            elif not name.endswith(suffix if isinstance(suffix, str) else tuple(suffix)):
                others[osp.splitext(name)[1]] += 1
    for other, count in others.items():
        detail = f'{count} files that end in {other}, it loads {suffix}'
        yield Finding('other-suffix', loaded.split, folder, detail)
