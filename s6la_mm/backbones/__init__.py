"""Backbones that carry the S6LA state, thin subclasses of the OpenMMLab backbones, and two relatives to compare with.

``S6LAViT`` and ``S6LASwin`` stand on mmpretrain, which is optional: their modules are imported when one of them is
asked for, here or by a config.
"""

from __future__ import annotations

from importlib import import_module

from mmengine.registry import MODELS

from ..environment import require_mmpretrain
from .mrla_resnet import MRLAResNet
from .rla_resnet import RLAResNet
from .s6la_pvt import S6LAPVTv2
from .s6la_resnet import S6LAResNet

_ON_MMPRETRAIN = {'S6LASwin': 's6la_swin', 'S6LAViT': 's6la_vit'}

__all__ = ['MRLAResNet', 'RLAResNet', 'S6LAPVTv2', 'S6LAResNet', *_ON_MMPRETRAIN]


def __getattr__(name: str) -> type:
    if name not in _ON_MMPRETRAIN:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    require_mmpretrain(name)
    return getattr(import_module(f'.{_ON_MMPRETRAIN[name]}', __name__), name)


def _register(name: str) -> None:
    """Registers a function that builds the backbone, as the class would have to be imported for that."""

    def build(**options) -> object:
        return __getattr__(name)(**options)

    MODELS.register_module(name=name, module=build)


for _name in _ON_MMPRETRAIN:
    _register(_name)
