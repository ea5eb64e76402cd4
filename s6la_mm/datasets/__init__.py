"""Data sets of this package: the one that the quickstart generates, CamVid, and a check of label maps.

``CamVidDataset`` stands on mmseg, which is optional: its module is imported when it is asked for, here or by a config.
"""

from __future__ import annotations

from mmengine.registry import DATASETS

from .label_check import LabelCheckHook, check_labels
from .shapes import ShapesDataset, generate_shapes

__all__ = ['CamVidDataset', 'LabelCheckHook', 'ShapesDataset', 'check_labels', 'generate_shapes']


def __getattr__(name: str) -> type:
    if name != 'CamVidDataset':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from .camvid import CamVidDataset

    return CamVidDataset


@DATASETS.register_module(name='CamVidDataset')
def _build_camvid(**options) -> object:
    return __getattr__('CamVidDataset')(**options)
