"""What a model, its data and its schedule must agree on, looked at before hours are spent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from torch import nn
from torch.optim import Optimizer

from ..common.configs import datasets_of, metainfo_of
from ..common.model_configs import OTHER_CLASSES
from ..optim import undecayed_parameters


def class_problems(model: nn.Module, metainfo: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Compares the classes of a model's heads with those of its data, and the data sets with each other.

    Args:
        model (nn.Module): Of mmdet, mmseg or mmpretrain, not wrapped.
        metainfo (Mapping[str, Mapping]): What the data sets say about themselves, by split.

    Returns:
        list[str]: What does not fit.

    Example:
        >>> model = nn.ModuleDict(dict(decode_head=nn.Identity()))
        >>> model.decode_head.num_classes = 19
        >>> class_problems(model, dict(train=dict(classes=('road', 'car'))))
        ['model.decode_head has num_classes=19, the train data 2 classes (road, car)']
    """
    splits: dict[tuple[str, str], list[str]] = defaultdict(list)
    found = []
    for split, info in metainfo.items():
        classes = info.get('classes')
        if isinstance(classes, str):
            found.append(f'the {split} classes are the text {classes!r}, whose letters count: write ({classes!r},)')
            continue
        for path, key, number, names in _mismatches(model, info) if classes else ():
            named = f' ({", ".join(map(str, names[:3]))}{", ..." * (len(names) > 3)})' if names else ''
            what = f'{len(names)} {key.removeprefix("num_")}{named}'
            splits[f'model.{path} has {key}={number}', what].append(split)
    found += [f'{head}, the {" and ".join(where)} data {what}' for (head, what), where in splits.items()]
    train, val = (list(metainfo.get(split, {}).get('classes') or ()) for split in ('train', 'val'))
    if train != val and sorted(train) == sorted(val):
        number = next(i for i, (one, other) in enumerate(zip(train, val)) if one != other)
        found.append(f'class {number} is {train[number]!r} in the train data and {val[number]!r} in the val data')
    return found


def _mismatches(model: nn.Module, info: Mapping[str, Any]) -> Iterator[tuple[str, str, int, Sequence[str]]]:
    """Path of a head, the name and value of its option, and the classes that it should have."""
    if not learns_the_classes(model):
        return
    is_panoptic = 'thing_classes' in info
    for path, module in model.named_modules():
        parts = [part for part in path.split('.') if not part.isdigit() and not part.startswith('_')]  # FSDP's
        mixes = getattr(module, 'batch_augments', None) is not None  # mmpretrain's Mixup: a column for each class
        if not parts or not (parts[-1].endswith('head') or mixes):
            continue
        if is_panoptic and hasattr(module, 'num_things_classes'):
            wanted = dict(num_things_classes=info['thing_classes'], num_stuff_classes=info.get('stuff_classes', ()))
        elif set(parts) & set(OTHER_CLASSES) or getattr(module, 'class_agnostic', False):
            continue
        elif parts[-1] == 'auxiliary_head' and not _has_plain_loss(module):
            continue  # it learns something else from the label maps, edges for example
        else:
            wanted = dict(num_classes=info['thing_classes'] if is_panoptic else info['classes'])
        for key, names in wanted.items():
            number = vars(module).get(key)  # what is the same for all of a class is no option
            if len(names) == 2 and getattr(module, 'out_channels', None) == 1:
                continue  # the one class against the other, by a threshold
            if isinstance(number, int) and number != len(names):
                yield path, key, number, names


def learns_the_classes(model: nn.Module) -> bool:
    """Whether a model tells the classes of its data apart: no proposals, tracking, or objects that a text names."""
    names = {base.__name__ for base in type(model).__mro__}
    return not names & {'RPN', 'BaseMOTModel'} and not hasattr(model, 'language_model')


def _has_plain_loss(head: nn.Module) -> bool:
    loss = getattr(type(head), 'loss_by_feat', None)
    return getattr(loss, '__qualname__', '') == 'BaseDecodeHead.loss_by_feat'


def metric_problems(metrics: Sequence[BaseMetric], classes: Sequence[str]) -> list[str]:
    """Classes that the annotation file of a metric does not know, whose results would be counted for others.

    Args:
        metrics (Sequence[BaseMetric]): Of an evaluator.
        classes (Sequence[str]): Of the data set that it evaluates.
    """
    problems = []
    for metric in metrics:
        api = getattr(metric, '_coco_api', None) or getattr(metric, '_lvis_api', None)
        content = getattr(api, 'dataset', None) or {}
        known = {category['name'] for category in content.get('categories', ())}
        unknown = [name for name in classes if name not in known] if known else []
        if unknown:
            problems.append(
                f'the ann_file of {type(metric).__name__} has no category {", ".join(map(repr, unknown[:3]))}'
                + ', ...' * (len(unknown) > 3)
                + f'; it has {", ".join(sorted(known)[:5])}'
                + ', ...' * (len(known) > 5)
            )
    return problems


def file_problems(split: str, dataset: Any) -> list[str]:
    """Classes of data sets that their COCO files lack: labels would be counted without these, and mean other classes.

    Args:
        split (str): For the message.
        dataset (Dataset): What was built.
    """
    problems = []
    for part in datasets_of(dataset):
        classes, found = metainfo_of(part).get('classes') or (), getattr(part, 'cat_ids', None)
        if found is not None and not isinstance(classes, str) and len(found) < len(classes):
            problems.append(f'{part.ann_file} has categories for {len(found)} of the {len(classes)} {split} classes')
    return problems


def decayed_state(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """The names of parameters of the state that the weight decay of an optimizer pulls on.

    Args:
        model (nn.Module): The model.
        optimizer (Optimizer): Its optimizer.
    """
    decay = {id(p): group.get('weight_decay') for group in optimizer.param_groups for p in group['params']}
    spared = {id(p) for p in undecayed_parameters(model) if p.requires_grad}
    return sorted(name for name, p in model.named_parameters() if id(p) in spared and decay.get(id(p)))


def learning_rate_advice(cfg: Config, processes: int) -> str | None:
    """What to do about a learning rate that is meant for another batch size; None if nothing.

    Args:
        cfg (Config): A training config, whose ``auto_scale_lr.base_batch_size`` says what is meant.
        processes (int): Processes of the training.

    Example:
        >>> cfg = Config(dict(auto_scale_lr=dict(base_batch_size=16), train_dataloader=dict(batch_size=2)))
        >>> learning_rate_advice(cfg, 8)
        >>> learning_rate_advice(cfg, 1)
        'the learning rate is meant for batches of 16 images, 1 x 2 are 2: train with --auto-scale-lr, or scale it'
    """
    scaling = cfg.get('auto_scale_lr') or {}
    base, loader = scaling.get('base_batch_size'), cfg.train_dataloader
    images = loader.get('batch_size') or (loader.get('batch_sampler') or {}).get('batch_size')
    if not base or not images or scaling.get('enable'):
        return None
    images *= (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    if base / 2 < processes * images < base * 2:
        return None
    return (
        f'the learning rate is meant for batches of {base} images, {processes} x {images} are {processes * images}: '
        'train with --auto-scale-lr, or scale it'
    )
