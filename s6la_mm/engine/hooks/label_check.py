"""A look at all label maps before a segmentation training starts.

A label that is no class stops the training in the middle: with an assertion of the device that names neither file nor
label, hours after the start if the file is rare.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from mmcv.transforms import LoadAnnotations
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...common.configs import datasets_of, unwrapped
from ...common.errors import UsageError


@HOOKS.register_module()
class LabelCheckHook(Hook):
    """Reads the label maps of the training set once and refuses those with labels that the model has no class for.

    The maps are loaded as the pipeline loads them, with ``reduce_zero_label`` and the map of custom classes; each
    process reads its share.

    Example:
        >>> custom_hooks = [dict(type='LabelCheckHook')]
    """

    def before_train(self, runner: Runner) -> None:
        """Checks the training set.

        Raises:
            UsageError: If there is a label that is neither a class nor ``ignore_index``; the message counts each.
        """
        model = unwrapped(runner.model)
        for dataset in datasets_of(runner.train_dataloader.dataset):
            check_labels(dataset, model.num_classes)


def unknown_labels(labels: np.ndarray, num_classes: int, ignore_index: int) -> dict[int, int]:
    """The labels of a map that are neither a class nor ``ignore_index``, in order, and how many pixels have them.

    Args:
        labels (np.ndarray): Label map of non-negative integers, (H, W).
        num_classes (int): Labels from 0 to ``num_classes`` - 1 are classes.
        ignore_index (int): The label of pixels that do not count.

    Example:
        >>> unknown_labels(np.array([[0, 1, 7], [7, 255, 9]]), 2, 255)
        {7: 2, 9: 1}
    """
    pixels = np.bincount(labels.ravel())
    present = (int(label) for label in np.flatnonzero(pixels))
    return {label: int(pixels[label]) for label in present if label >= num_classes and label != ignore_index}


def check_labels(dataset: Any, num_classes: int) -> None:
    """Reads this process's share of the label maps of a data set, and counts labels out of range.

    Args:
        dataset (mmseg.datasets.BaseSegDataset): Without a ``LoadAnnotations`` in its pipeline it is not checked.
        num_classes (int): Labels from 0 to ``num_classes`` - 1 and ``dataset.ignore_index`` are allowed.

    Raises:
        UsageError: If there are other labels: which, how many pixels in how many files, the first file, and what to do.
    """
    load = next((t for t in dataset.pipeline.transforms if isinstance(t, LoadAnnotations)), None)
    if load is None:
        print_log(
            f'LabelCheckHook: {type(dataset).__name__} has no LoadAnnotations in its pipeline, it is not checked',
            logger='current',
            level=logging.WARNING,
        )
        return
    rank, world_size = get_dist_info()
    share = range(rank, len(dataset), world_size)
    print_log(f'Checking the labels of {len(share)} label maps', logger='current')
    found: dict[int, list] = {}  # label: [pixels, files, first file]
    for index in share:
        info = dataset.get_data_info(index)
        for label, pixels in unknown_labels(load(info)['gt_seg_map'], num_classes, dataset.ignore_index).items():
            counts = found.setdefault(label, [0, 0, info['seg_map_path']])
            counts[0] += pixels
            counts[1] += 1
    if found:
        lines = [f'label {k}: {n} pixels in {m} files, the first {path}' for k, (n, m, path) in sorted(found.items())]
        raise UsageError(
            f'{type(dataset).__name__} has labels that are none of the {num_classes} classes of the model '
            f'(0 to {num_classes - 1}), nor ignore_index={dataset.ignore_index}: {"; ".join(lines)}. Set the '
            "heads' num_classes and the data set's classes to what is labelled, reduce_zero_label=True if 0 means "
            'unlabelled, or mend these files.'
        )
