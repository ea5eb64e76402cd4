"""Label maps as the config's pipeline loads them: values that are no class, sizes, and how many pixels have which."""

from __future__ import annotations

import copy
import os.path as osp
from collections.abc import Iterator
from typing import Any

import numpy as np
from mmcv.transforms import LoadAnnotations

from ...engine.hooks.label_check import unknown_labels
from .classes import ClassCounts
from .findings import Finding, in_words
from .image_files import ImageFile, name_beside
from .loading import LoadedDataset


class LabelMapCheck:
    """Looks at the label maps of a data set, if its pipeline loads them.

    Args:
        loaded (LoadedDataset): The data set.
    """

    def __init__(self, loaded: LoadedDataset) -> None:
        self.split = loaded.split
        self.classes = loaded.classes
        self.backend_args = loaded.backend_args
        loads = [t for t in loaded.transforms if isinstance(t, LoadAnnotations) and t.with_seg]
        self.load: Any = copy.copy(loads[0]) if loads else None
        if self.load:  # of the rest there is no need
            self.load.with_bbox = self.load.with_label = self.load.with_mask = self.load.with_keypoints = False
        self.ignore_index = getattr(loaded.built, 'ignore_index', getattr(self.load, 'ignore_index', 255))
        self._names: dict[str, dict[str, str]] = {}

    def applies(self, entry: dict) -> bool:
        """Whether an entry has a label map that the pipeline loads."""
        return self.load is not None and entry.get('seg_map_path') is not None

    def __call__(self, entry: dict, image: ImageFile) -> tuple[list[Finding], np.ndarray | None]:
        """Looks at one.

        Returns:
            tuple[list[Finding], np.ndarray | None]: What is wrong with it, and the pixels of each label; None where the
                labels are not those of the data set.
        """
        path = entry['seg_map_path']
        if self.backend_args is None and not osp.isfile(path):
            beside = name_beside(path, self._names)
            detail = f'there is {beside}' if beside else ''
            return [Finding('missing-label-map', self.split, path, detail)], None
        try:
            labels = self.load({**entry, 'seg_fields': []})['gt_seg_map']
        except Exception as error:  # of whatever library decodes it
            return [Finding('unreadable-label-map', self.split, path, in_words(error))], None
        problems = []
        size = labels.shape[1::-1]
        if image.size is not None and size != image.size:
            detail = f'{size[0]} x {size[1]}, the image has {image.size[0]} x {image.size[1]}'
            problems.append(Finding('label-size-mismatch', self.split, path, detail))
        if labels.ndim != 2:
            detail = f'{labels.shape[2]} channels: colours instead of labels'
            return [*problems, Finding('label-out-of-range', self.split, path, detail)], None
        if 'instances' in entry and 'segments_info' not in entry:
            return problems, None  # beside objects there may be labels of other classes, as those of COCO-Stuff
        return [*problems, *self._check_values(labels, path)], np.bincount(labels.ravel())

    def _check_values(self, labels: np.ndarray, path: str) -> Iterator[Finding]:
        number = len(self.classes)
        unknown = unknown_labels(labels, number, self.ignore_index) if number else {}
        if unknown:
            detail = f'labels {list(unknown)[:5]}, there are {number} classes and {self.ignore_index} to ignore'
            yield Finding('label-out-of-range', self.split, path, detail)
        if (labels == self.ignore_index).all():
            yield Finding('nothing-labelled', self.split, path, f'all of it is {self.ignore_index}')

    def count(self, pixels: np.ndarray, counts: ClassCounts) -> None:
        """Adds the pixels of an image, by label, to those of its split."""
        labels = dict(enumerate(pixels.tolist()))
        counts.ignored[self.ignore_index] += labels.pop(self.ignore_index, 0)
        counts.add(self.classes, labels, 'pixels')
