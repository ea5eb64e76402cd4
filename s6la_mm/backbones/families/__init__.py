"""The families of S6LA backbones: what the converter, the tools and the tests know of each stands in its file here.

A new backbone is its module in ``s6la_mm/backbones``, its file here, and its entry in ``FAMILIES``.
"""

from .convnext import CONVNEXT
from .family import Family, Size
from .pvt import PVT
from .resnet import RESNET
from .swin import SWIN
from .vit import VIT

FAMILIES = (RESNET, VIT, SWIN, PVT, CONVNEXT)

__all__ = ['FAMILIES', 'Family', 'Size']
