"""What the server of ``forked.py`` imports: the packages that s6la_mm is built on, but nothing of s6la_mm."""

import contextlib

import cv2  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import mmdet.apis  # noqa: F401
import mmengine.runner  # noqa: F401
import torch  # noqa: F401

for package in ('mmseg.apis', 'mmpretrain.apis'):
    with contextlib.suppress(ImportError):
        __import__(package)
