"""Trained models of every scope of OpenMMLab, and what runs and draws them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import VISUALIZERS, init_default_scope
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from torch import nn

from ..checkpoint.reading import weights_only
from .errors import UsageError


def init_model(
    cfg: Config, checkpoint: str, device: str | None = None
) -> tuple[nn.Module, Callable[[str], BaseDataElement]]:
    """Builds the model of a config and loads its weights, without running code that their file may hold.

    Args:
        cfg (Config): A config; its ``default_scope`` becomes mmengine's.
        checkpoint (str): File or address of the weights.
        device (str, optional): As PyTorch names it. Defaults to an accelerator if there is one.

    Returns:
        tuple[nn.Module, Callable]: The model in evaluation mode, with its ``dataset_meta``, and a function that runs
            it on an image file and gives the data sample with the prediction.

    Raises:
        UsageError: If the scope is not one of mmdet, mmseg and mmpretrain.
    """
    scope = cfg.get('default_scope')
    device = device or get_device()
    if scope not in ('mmdet', 'mmseg', 'mmpretrain'):
        raise UsageError(f'default_scope={scope!r} of the config must be one of mmdet, mmseg, mmpretrain')
    init_default_scope(scope)
    with weights_only():
        if scope == 'mmdet':
            from mmdet.apis import inference_detector, init_detector

            model = init_detector(cfg, checkpoint, device=device)
            return model, partial(inference_detector, model)
        if scope == 'mmseg':
            from mmseg.apis import inference_model
            from mmseg.apis import init_model as init_segmentor

            model = init_segmentor(cfg, checkpoint, device=device)
            return model, partial(inference_model, model)
        from mmpretrain.apis import ImageClassificationInferencer

        inferencer = ImageClassificationInferencer(cfg, checkpoint, device)
        model = inferencer.model
        model.dataset_meta = model._dataset_meta
        # Not inferencer(path), which draws a progress bar for each image.
        return model, lambda path: inferencer.forward(next(inferencer.preprocess([path])))[0]


def build_visualizer(cfg: Config, dataset_meta: dict) -> Visualizer:
    """Builds the visualizer of a config, which writes nothing but the files that it is told to.

    Args:
        cfg (Config): A config with ``visualizer``.
        dataset_meta (dict): Classes and colours.
    """
    visualizer = VISUALIZERS.build({**cfg.visualizer, 'vis_backends': None})
    visualizer.dataset_meta = dataset_meta
    return visualizer
