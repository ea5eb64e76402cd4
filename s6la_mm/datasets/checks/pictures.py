"""Pictures of samples with their annotations: as they are in the files, and as the network gets them."""

from __future__ import annotations

import os.path as osp
from typing import Any

import numpy as np
import torch
from mmcv.transforms import LoadAnnotations
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS
from mmengine.structures import BaseDataElement

from ...common.configs import metainfo_of, package_of
from ...common.inference import build_visualizer
from .image_files import ImageLoader
from .loading import flat

_META_KEYS = ('img_path', 'ori_shape', 'img_shape')


def save_pictures(cfg: Config, split: str, folder: str, number: int = 4) -> tuple[list[str], list[str]]:
    """Draws some samples of a split, evenly spread, each in two files.

    Args:
        cfg (Config): The config; a ``model`` in it has the normalisation to undo.
        split (str): ``'train'``, ``'val'`` or ``'test'``.
        folder (str): Where ``train_0_raw.jpg``, ``train_0_network.jpg`` … go.
        number (int): How many samples. Defaults to 4.

    Returns:
        tuple[list[str], list[str]]: The files, and what could not be drawn and why.
    """
    dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
    preprocessor = _build_preprocessor(cfg)
    files, failures = [], []
    for index in np.unique(np.linspace(0, len(dataset) - 1, number).astype(int)).tolist():
        for view, draw in (('raw', _raw_sample), ('network', _network_sample)):
            path = osp.join(folder, f'{split}_{index}_{view}.jpg')
            try:
                image, sample = draw(dataset, index, preprocessor, split == 'train')
                _draw(cfg, dict(metainfo_of(dataset)), image, sample, path)
                files.append(path)
            except Exception as error:  # of whatever transform: the others are drawn
                failures.append(f'{path}: {type(error).__name__}: {error}')
    return files, failures


def _raw_sample(dataset: Any, index: int, *_: Any) -> tuple[np.ndarray, BaseDataElement]:
    """The sample before any transform that changes it."""
    dataset, index, transforms = _find_sample(dataset, index)
    results = ImageLoader(transforms, getattr(dataset, 'backend_args', None))(dataset.get_data_info(index))
    image = np.ascontiguousarray(results['img'])
    for transform in transforms:
        if isinstance(transform, LoadAnnotations):
            results = transform(results)
    pack = next(t for t in transforms if type(t).__name__.startswith('Pack'))
    return _for_drawing(torch.from_numpy(image)), type(pack)(meta_keys=_META_KEYS)(results)['data_samples']


def _network_sample(dataset: Any, index: int, preprocessor: Any, training: bool) -> tuple[np.ndarray, BaseDataElement]:
    """The sample as the model gets it, its normalisation undone."""
    batch = pseudo_collate([dataset[index]])
    if preprocessor is None:
        return _for_drawing(batch['inputs'][0].permute(1, 2, 0)), batch['data_samples'][0]
    with torch.no_grad():
        batch = preprocessor(batch, training)
    image = batch['inputs'][0]
    if getattr(preprocessor, '_enable_normalize', False):
        image = image * preprocessor.std + preprocessor.mean
    names = ('_channel_conversion', 'channel_conversion', 'to_rgb')  # of mmengine, mmseg and mmpretrain
    is_rgb = any(getattr(preprocessor, name, False) for name in names)
    image = image.permute(1, 2, 0)
    return _for_drawing(image.flip(-1) if is_rgb else image), batch['data_samples'][0]


def _find_sample(dataset: Any, index: int) -> tuple[Any, int, list]:
    """The data set under all wrappers that a sample comes from, its number there, and the transforms of all."""
    transforms: list = []
    while True:
        pipeline = getattr(dataset, 'pipeline', ())
        transforms = [*flat(getattr(pipeline, 'transforms', pipeline)), *transforms]
        if not (hasattr(dataset, 'dataset') or hasattr(dataset, 'datasets')):
            return dataset, index, transforms
        found = dataset._get_ori_dataset_idx(index) if hasattr(dataset, '_get_ori_dataset_idx') else index
        if isinstance(found, tuple):
            dataset, index = dataset.datasets[found[0]], found[1]
        else:
            dataset, index = dataset.dataset, found


def _build_preprocessor(cfg: Config) -> Any:
    """What normalises the images of the config's model, if it has one."""
    options = cfg.get('model', {}).get('data_preprocessor') or cfg.get('data_preprocessor')
    if not options:
        return None
    default = 'ClsDataPreprocessor' if package_of(cfg) == 'mmpretrain' else 'BaseDataPreprocessor'
    return MODELS.build(ConfigDict(dict(type=default), **options)).eval()


def _for_drawing(image: torch.Tensor) -> np.ndarray:
    """Height, width and red, green, blue from 0 to 255, of an image in OpenCV's order or of other channels."""
    image = image[..., None] if image.ndim == 2 else image
    image = image[..., :3].flip(-1) if image.shape[-1] >= 3 else image[..., :1].expand(-1, -1, 3)
    return np.ascontiguousarray(image.float().round().clamp(0, 255).numpy().astype(np.uint8))


def _draw(cfg: Config, metainfo: dict, image: np.ndarray, sample: BaseDataElement, path: str) -> None:
    visualizer = build_visualizer(cfg, metainfo)
    if hasattr(visualizer, 'visualize_cls'):
        visualizer.visualize_cls(image, sample, draw_pred=False, out_file=path, resize=max(224, min(image.shape[:2])))
        return
    instances = sample.get('gt_instances')
    if instances is not None and hasattr(instances.get('bboxes'), 'tensor'):
        instances.bboxes = instances.bboxes.tensor
    visualizer.add_datasample('', image, sample, draw_pred=False, out_file=path)
