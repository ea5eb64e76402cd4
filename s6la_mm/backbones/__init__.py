"""Backbones that carry the S6LA state, thin subclasses of the OpenMMLab backbones, and two relatives to compare with.

What stands on mmpretrain, which is optional, is imported when it is asked for, here or by a config.
"""

from __future__ import annotations

from typing import Any

from mmengine.registry import MODELS

from .families import FAMILIES
from .mrla_resnet import MRLAResNet
from .rla_resnet import RLAResNet
from .s6la_pvt import S6LAPVTv2
from .s6la_resnet import S6LAResNet

_LATER = {family.name: family for family in FAMILIES if family.on_mmpretrain}

__all__ = ['MRLAResNet', 'RLAResNet', 'S6LAPVTv2', 'S6LAResNet', *_LATER]


def __getattr__(name: str) -> type:
    if name not in _LATER:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return _LATER[name].load()


def _register(name: str) -> None:
    """Registers a function that builds the backbone, as the class would have to be imported for that."""

    def build(**options: Any) -> object:
        return _LATER[name].load()(**options)

    MODELS.register_module(name=name, module=build)


for _name in _LATER:
    _register(_name)
