"""Trained models of every scope of OpenMMLab, and what runs and draws them."""

from __future__ import annotations

import copy
import logging
import os.path as osp
import re
import time
from collections.abc import Callable

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate, pseudo_collate
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import VISUALIZERS
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from PIL import Image
from torch import nn

from ..checkpoint.reading import weights_only
from ..config_types import home_of, type_name
from .configs import datasets_of, enter_scope, package_of
from .errors import UsageError
from .fonts import make_legible
from .model_configs import classes_of_heads, describe_class_names

# What draws predictions and annotations, where a config does not say it.
_VISUALIZERS = dict(
    mmdet='mmdet.DetLocalVisualizer', mmseg='mmseg.SegLocalVisualizer', mmpretrain='mmpretrain.UniversalVisualizer'
)


def init_model(cfg: Config, checkpoint: str, device: str | None = None) -> nn.Module:
    """Builds the model of a config and loads its weights, without running code that their file may hold.

    Args:
        cfg (Config): A config; its ``default_scope`` becomes mmengine's; that of its package if it names none.
        checkpoint (str): File or address of the weights.
        device (str, optional): As PyTorch names it. Defaults to an accelerator if there is one.

    Returns:
        nn.Module: The model in evaluation mode, with its ``dataset_meta``.

    Raises:
        UsageError: If the config is for none of mmdet, mmseg and mmpretrain.
    """
    scope = package_of(cfg)
    if scope == 'mmdet':
        from mmdet.apis import init_detector as init
    elif scope == 'mmseg':
        from mmseg.apis import init_model as init
    elif scope == 'mmpretrain':
        from mmpretrain.apis import get_model as init
    else:
        raise UsageError(f'default_scope={scope!r} of the config must be one of mmdet, mmseg, mmpretrain')
    enter_scope(cfg)
    cfg = copy.deepcopy(cfg)
    cfg.default_scope = scope  # mmseg takes no None
    if cfg.get('test_dataloader'):  # of which mmdet takes the colours: wrappers would read the annotations first
        dataset = cfg.test_dataloader.dataset = next(datasets_of(cfg.test_dataloader.dataset))
        if scope == 'mmpretrain' and not isinstance(dataset.type, str):  # which looks it up by name
            dataset.type = f'{home_of(dataset.type)}.{type_name(dataset)}'
    with weights_only():
        model = init(cfg, checkpoint, device=device or get_device())
    if scope == 'mmpretrain':
        model.dataset_meta = model._dataset_meta
    return model


def predictor(cfg: Config, model: nn.Module) -> Callable[[str], BaseDataElement]:
    """A function that runs a model on an image file, as a test would: its data sample with the prediction.

    Args:
        cfg (Config): The config, of which it takes the pipeline of the test, without annotations.
        model (nn.Module): Of :func:`init_model`.
    """
    steps = next(datasets_of(cfg.test_dataloader.dataset)).pipeline
    pipeline = Compose([step for step in steps if 'Annotation' not in type_name(step)])
    # mmpretrain takes a list for views of one image.
    collate = default_collate if package_of(cfg) == 'mmpretrain' else pseudo_collate

    def predict(path: str) -> BaseDataElement:
        with torch.no_grad():
            return model.test_step(collate([pipeline(dict(img_path=path, img_id=0))]))[0]

    return predict


def loader_of(cfg: Config) -> Callable[[str], np.ndarray]:
    """A function that reads an image file as the first step of the config's pipeline of the test does."""
    load = Compose(next(datasets_of(cfg.test_dataloader.dataset)).pipeline[:1])
    return lambda path: load(dict(img_path=path, img_id=0))['img']


def read_image(path: str, load: Callable[[str], np.ndarray] | None = None) -> np.ndarray:
    """Reads an image file as mmcv loads it.

    Args:
        path (str): The file.
        load (Callable, optional): What reads files that are none of mmcv's: see :func:`loader_of`. Of more than three
            channels the first three are shown. Defaults to None.

    Returns:
        np.ndarray: (height, width, 3), RGB, uint8.

    Raises:
        UsageError: If it is no image, or not all of one: OpenCV makes up for a missing end with grey.
    """
    if osp.isdir(path):
        raise UsageError(f'{path} is a folder, not an image')
    try:
        image = mmcv.imread(path, channel_order='rgb')
    except OSError as error:
        raise UsageError(f'{path} cannot be read as an image ({error.strerror or error})') from error
    except cv2.error as error:
        if load is None:
            raise UsageError(f'{path} cannot be read as an image ({error})') from error
        image = None
    if image is None:
        if load is None:
            raise UsageError(f'{path} cannot be read as an image')
        try:
            return _as_picture(load(path))
        except Exception as error:
            reason = f'{type(error).__name__}: {error}'
            raise UsageError(f"{path} cannot be read as an image, nor by the config's loader ({reason})") from error
    try:
        with Image.open(path) as again:
            again.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if re.search('truncated|broken', str(error), re.I):  # else a kind of file that Pillow does not know
            raise UsageError(f'{path} is damaged: {error}') from error
    return image


def _as_picture(pixels: np.ndarray) -> np.ndarray:
    """Any number of channels of any type, blue first, as (height, width, 3), RGB, uint8."""
    pixels = np.atleast_3d(pixels)
    pixels = pixels[..., 2::-1] if pixels.shape[2] > 2 else pixels[..., [0, 0, 0]]
    if pixels.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        pixels = ((pixels.astype(float) - low) / ((high - low) or 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def build_visualizer(cfg: Config, dataset_meta: dict) -> Visualizer:
    """Builds the visualizer of a config, which writes nothing but the files that it is told to.

    Args:
        cfg (Config): A config; without ``visualizer`` it is the one that its scope has for pictures.
        dataset_meta (dict): Classes and colours. Where the heads have more classes, those get their numbers as names.
    """
    name = f'visualizer_{time.time_ns()}'  # mmengine would return one whose name it knows
    own = cfg.get('visualizer') or dict(type=_VISUALIZERS.get(package_of(cfg) or '', 'Visualizer'))
    visualizer = VISUALIZERS.build({**own, 'vis_backends': None, 'name': name})
    visualizer.dataset_meta = _with_all_names(dataset_meta, classes_of_heads(cfg.get('model')))
    return make_legible(visualizer)


def _with_all_names(meta: dict, number: int) -> dict:
    """``meta``, or where it has fewer names than the heads have classes, one with a name and a colour for each."""
    classes = meta.get('classes') or ()
    classes = (classes,) if isinstance(classes, str) else tuple(classes)
    if not classes or len(classes) >= number:
        return meta
    text = describe_class_names(classes, number, 'the checkpoint')
    print_log(f'{text}: the others are called by their numbers', logger='current', level=logging.WARNING)
    classes += tuple(f'class {i}' for i in range(len(classes), number))
    palette = meta.get('palette')
    if isinstance(palette, (list, tuple)):
        colours = np.random.default_rng(0).integers(0, 256, (number, 3)).tolist()
        palette = [*palette, *colours[len(palette) :]]
    return {**meta, 'classes': classes, 'palette': palette} if palette else {**meta, 'classes': classes}
