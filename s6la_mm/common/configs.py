"""What is asked of configs: their package, the plain network beside an S6LA one, no downloads, a random batch."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from ..backbones.families import FAMILIES
from ..config_types import find_type, home_of, type_name
from .errors import UsageError

PACKAGES = ('mmdet', 'mmseg', 'mmpretrain')


def package_of(cfg: Config) -> str | None:
    """The package of OpenMMLab that a config is for.

    Args:
        cfg (Config): A config.

    Returns:
        str or None: Its ``default_scope`` if that is a package's. Configs in pure Python have none: then the package
        that the class of the model, or of a data set, is from. Else whatever ``default_scope`` is.

    Example:
        >>> package_of(Config(dict(default_scope=None, model=dict(type='mmseg.EncoderDecoder'))))
        'mmseg'
    """
    scope = cfg.get('default_scope')
    return scope if scope in PACKAGES else next(_packages_used(cfg), scope)


def _packages_used(cfg: Config) -> Iterator[str]:
    loaders = [cfg.get(f'{split}_dataloader') for split in ('train', 'val', 'test')]
    datasets = [part for loader in loaders if isinstance(loader, dict) for part in datasets_of(loader['dataset'])]
    for registry, part in [(MODELS, cfg.get('model')), *((DATASETS, dataset) for dataset in datasets)]:
        kind = (part or {}).get('type')
        names = [kind] if isinstance(kind, str) else []
        if kind is not None:
            names += [base.__module__ for base in getattr(find_type(kind, registry), '__mro__', ())]
        yield from (name.partition('.')[0] for name in names if name.startswith(tuple(f'{p}.' for p in PACKAGES)))


def enter_scope(cfg: Config) -> None:
    """Makes the default scope of a config mmengine's; that of its package where it names none, as in pure Python."""
    scope = cfg.get('default_scope', 'mmengine') or package_of(cfg)
    if scope is not None:
        init_default_scope(scope)


def entry(cfg: Config | dict, key: str, default: Any) -> Any:
    """``cfg[key]``, which becomes ``default`` where it is missing or None.

    ``Config.setdefault`` returns what it was given, and not the copy that the config keeps.

    Example:
        >>> cfg = Config(dict(custom_imports=None))
        >>> entry(cfg, 'custom_imports', dict(imports=[])).imports.append('s6la_mm')
        >>> cfg.custom_imports
        {'imports': ['s6la_mm']}
    """
    if cfg.get(key) is None:
        cfg[key] = default
    return cfg[key]


def hooks_of(cfg: Config) -> list[dict]:
    """The entries of all hooks of a config, but of those that are switched off.

    Example:
        >>> hooks_of(Config(dict(default_hooks=dict(timer=None), custom_hooks=[dict(type='EMAHook')])))
        [{'type': 'EMAHook'}]
    """
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    return [hook for hook in hooks if isinstance(hook, dict)]


def name_classes(cfg: Config) -> None:
    """Gives classes and functions in a config, in place, the form that can be written to a file and read elsewhere.

    Example:
        >>> cfg = Config(dict(model=dict(type=nn.Linear)))
        >>> name_classes(cfg)
        >>> cfg.pretty_text.strip(), cfg.model.type
        ("model = dict(type='torch.nn.Linear')", <class 'torch.nn.modules.linear.Linear'>)
    """
    for key, value in list(dict.items(cfg._cfg_dict)):  # a ConfigDict's own makes classes of lazy objects
        if key not in cfg._imported_names:
            cfg[key] = _with_names(value)


def _with_names(node: Any) -> Any:
    if isinstance(node, dict):
        for key, value in list(dict.items(node)):
            node[key] = _with_names(value)
    elif type(node) in (list, tuple):
        return type(node)(map(_with_names, node))
    else:
        kind = node.build() if isinstance(node, (LazyAttr, LazyObject)) else node
        module = home_of(kind) if isinstance(kind, (type, FunctionType)) else None
        if module is not None:
            return LazyObject(module, kind.__name__)
    return node


def unwrapped(model: nn.Module) -> nn.Module:
    """The model under a wrapper for several processes, or the model itself."""
    return model.module if is_model_wrapper(model) else model


def build_model(cfg: Config) -> nn.Module:
    """Builds the model of a config for evaluation, without loading weights."""
    enter_scope(cfg)
    return revert_sync_batchnorm(MODELS.build(cfg.model)).eval().requires_grad_(False)


def datasets_of(dataset: Any) -> Iterator[Any]:
    """The data sets under wrappers (ConcatDataset, RepeatDataset, MultiImageMixDataset …) nested in any order.

    Args:
        dataset (Dataset | dict): What was built, or its config.

    Yields:
        Dataset | dict: Each data set that is no wrapper, as what was given.

    Example:
        >>> repeated = dict(type='RepeatDataset', times=2, dataset=dict(type='CocoDataset'))
        >>> list(datasets_of(dict(type='ConcatDataset', datasets=[repeated, dict(type='VOCDataset')])))
        [{'type': 'CocoDataset'}, {'type': 'VOCDataset'}]
    """
    entries = dataset if isinstance(dataset, dict) else {k: getattr(dataset, k, None) for k in ('dataset', 'datasets')}
    inside = entries.get('datasets') if entries.get('dataset') is None else [entries['dataset']]
    if inside is None:
        yield dataset
    for part in inside or ():
        yield from datasets_of(part)


def metainfo_of(dataset: Any) -> Mapping[str, Any]:
    """What a data set says of itself; of several joined ones that differ the first, of others nothing."""
    info = getattr(dataset, 'metainfo', None) or {}
    return info if isinstance(info, Mapping) else info[0]


def is_s6la(cfg: Config) -> bool:
    """Whether the config's backbone is one of S6LA's."""
    return type_name(cfg.model.get('backbone', {})).startswith('S6LA')


def plain_config(cfg: Config) -> tuple[Config, list[str]]:
    """The config with the network that its S6LA backbone stands on.

    Args:
        cfg (Config): A config; it stays as it is.

    Returns:
        tuple[Config, list[str]]: The other config, and the options besides those of the state that it had to leave out
            because the plain network has none such (windows of a vision transformer).

    Raises:
        UsageError: If the backbone is not one of S6LA's.

    Example:
        >>> cfg = Config(dict(model=dict(backbone=dict(type='S6LAResNet', depth=50, state_dim=8))))
        >>> plain_config(cfg)[0].model.backbone
        {'depth': 50, 'type': 'mmdet.ResNet'}
    """
    options = copy.deepcopy(dict(cfg.model.get('backbone', {})))
    kind = options.pop('type', None)
    family = next((family for family in FAMILIES if family.name == type_name(kind)), None)
    if family is None:
        raise UsageError(f'the backbone {kind!r} is no S6LA backbone, so there is no plain network to compare it with')
    scope = package_of(cfg)
    s6la, plain = family.load(), family.load_plain(options, scope)
    if hasattr(s6la, 'arch_zoo') and isinstance(options.get('arch'), str) and 'arch' not in _known(plain):
        options = {**s6la.arch_zoo[options.pop('arch')], **options}
    unknown = options.keys() & (_known(s6la) - _known(plain))
    if isinstance(options.get('init_cfg'), dict) and options['init_cfg'].pop('adapt_channels', None):
        unknown.add('init_cfg.adapt_channels')
    kept = {key: value for key, value in options.items() if key not in unknown}
    result = copy.deepcopy(cfg)
    result.model.backbone = ConfigDict(kept, type=family.plain_type(options, scope))
    return result, sorted(unknown - s6la.state_options)


def _known(cls: type) -> set[str]:
    """The options of a class and its bases."""
    return {name for base in cls.__mro__ if '__init__' in vars(base) for name in inspect.signature(base).parameters}


def without_downloads(node: object) -> None:
    """Removes from a model's config, in place, all that loads weights."""
    if isinstance(node, dict):
        if isinstance(node.get('init_cfg'), dict) and 'checkpoint' in node['init_cfg']:
            node['init_cfg'] = None
        node.pop('pretrained', None)
    if isinstance(node, (dict, list, tuple)):
        for value in node.values() if isinstance(node, dict) else node:
            without_downloads(value)


def without_worker_options(cfg: Config) -> None:
    """Takes from data loaders without workers, in place, what PyTorch refuses then and a base config may have."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if isinstance(loader, dict) and not loader.get('num_workers'):
            for key in ('persistent_workers', 'prefetch_factor', 'multiprocessing_context'):
                if loader.pop(key, None):
                    print_log(f'{name}: {key} is left out, as there are no workers', logger='current')


def random_batch(
    scope: str, model: nn.Module, batch: int, shape: tuple[int, int], objects: int = 7, channels: int = 3
) -> dict:
    """Random images with annotations: what the data preprocessor of a model takes.

    Args:
        scope (str): ``'mmdet'``, ``'mmseg'`` or ``'mmpretrain'``; others raise a UsageError, as do detectors without a
            ``bbox_head`` or a ``panoptic_head``.
        model (nn.Module): The model, wrapped or not, whose classes and masks are asked for.
        batch (int): Images.
        shape (tuple[int, int]): Height and width.
        objects (int): Objects in an image of a detector. Defaults to 7, about COCO's mean.
        channels (int): Channels of the images. Defaults to 3.
    """
    model = unwrapped(model)
    height, width = shape
    if scope == 'mmdet':
        return _random_detections(model, batch, (channels, height, width), objects)
    images = torch.randint(0, 256, (batch, channels, height, width), dtype=torch.uint8)
    if scope == 'mmseg':
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        meta = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), shape)
        labels = [torch.randint(0, model.num_classes, (1, height, width)) for _ in range(batch)]
        data_samples = [SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=label)) for label in labels]
        return dict(inputs=list(images), data_samples=data_samples)
    if scope == 'mmpretrain':
        from mmpretrain.structures import DataSample

        labels = torch.randint(0, model.head.num_classes, (batch,))
        return dict(inputs=images, data_samples=[DataSample().set_gt_label(label) for label in labels])
    raise UsageError(f'random images are made for mmdet, mmseg and mmpretrain, not for default_scope={scope!r}')


def _random_detections(model: nn.Module, batch: int, image_shape: tuple[int, int, int], objects: int) -> dict:
    from mmdet.structures.mask import BitmapMasks
    from mmdet.testing import demo_mm_inputs
    from mmengine.structures import PixelData

    heads = [getattr(part, 'bbox_head', None) for part in (model, getattr(model, 'roi_head', None))]
    heads.append(getattr(model, 'panoptic_head', None))
    head = next((head for head in heads if head is not None), None)
    if head is None:
        name = type(model).__name__
        raise UsageError(
            f'random images are made for detectors with a bbox_head or panoptic_head, which {name} has not'
        )
    head = head[0] if isinstance(head, nn.ModuleList) else head
    things = getattr(head, 'num_things_classes', head.num_classes)
    with_mask = hasattr(model, 'panoptic_head') or (hasattr(model, 'roi_head') and model.roi_head.with_mask)
    drawn = min(objects, 8)  # masks are slow to draw: more objects are the same ones again
    result = demo_mm_inputs(
        batch,
        image_shapes=[image_shape] * batch,
        num_items=[drawn] * batch,
        num_classes=things,
        with_mask=with_mask,
    )
    again = torch.arange(objects) % drawn
    for sample in result['data_samples']:
        instances = sample.gt_instances
        values = dict(bboxes=instances.bboxes[again], labels=instances.labels[again])
        if with_mask:
            values['masks'] = BitmapMasks(instances.masks.masks.astype('uint8')[again.numpy()], *image_shape[1:])
        sample.gt_instances = type(instances)(**values)
        if getattr(head, 'num_stuff_classes', 0):
            stuff = torch.randint(things, head.num_classes, (1, *image_shape[1:]))
            sample.gt_sem_seg = PixelData(sem_seg=stuff)
    return result
