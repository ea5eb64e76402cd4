"""Necks that the OpenMMLab packages lack."""

from .simple_fpn import SimpleFPN

__all__ = ['SimpleFPN']
