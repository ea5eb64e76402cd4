"""Data sets of this package: the small one that the quickstart generates for itself."""

from .shapes import ShapesDataset, generate_shapes

__all__ = ['ShapesDataset', 'generate_shapes']
