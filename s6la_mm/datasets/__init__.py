"""Data sets of this package: the one that the quickstart generates, and CamVid.

``CamVidDataset`` stands on mmseg, which is optional: its module is imported when it is asked for, here or by a config.
"""

from __future__ import annotations

from typing import Any

from mmengine.registry import DATASETS

from .shapes import ShapesDataset, generate_shapes

__all__ = ['CamVidDataset', 'ShapesDataset', 'generate_shapes']


def __getattr__(name: str) -> type:
    if name != 'CamVidDataset':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from .camvid import CamVidDataset

    return CamVidDataset


@DATASETS.register_module(name='CamVidDataset')
def _build_camvid(**options: Any) -> object:
    return __getattr__('CamVidDataset')(**options)
