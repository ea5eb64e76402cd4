"""Backbones that carry the S6LA state: thin subclasses of the OpenMMLab backbones."""

from .s6la_resnet import S6LAResNet

__all__ = ['S6LAResNet']
