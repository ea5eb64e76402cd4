"""Reading the weights out of a file, a URL or a ``torchvision://`` name; code in a file is never run."""

from __future__ import annotations

import os.path as osp
import re
import zipfile
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.runner import CheckpointLoader
from torch import Tensor

from .safe_globals import weights_only

# Under which key training scripts put the weights: mmengine and timm, the authors of DeiT, Swin and PVT, DeepSpeed.
_PARTS = ('state_dict', 'model', 'module')
_EMA_PARTS = ('state_dict_ema', 'model_ema')
_WRAPPERS = re.compile(r'^((module|_orig_mod)\.)+|(?<=\.)_orig_mod\.')
_HELP = "docs/checkpoints.md, 'Files that are refused'"


class Weights(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        tensors (dict[str, Tensor]): The weights; what DDP (``module.``) and ``torch.compile`` (``_orig_mod.``) put
            before their names is gone.
        others (dict[str, Any]): What lies between the weights and is no tensor.
        part (str): The key of the file that the weights were under, ``''`` for the file itself.
        meta (dict[str, Any]): What the file says about itself: its other keys that are small, as ``epoch``.
        dataset_meta (dict[str, Any]): Of the data that the model was trained on: ``classes``, ``palette`` ... as far as
            the file says.
    """

    tensors: dict[str, Tensor]
    others: dict[str, Any]
    part: str
    meta: dict[str, Any]
    dataset_meta: dict[str, Any] = {}


def read_weights(source: str, *, ema: bool = False, map_location: str = 'cpu') -> Weights:
    """Reads a checkpoint with ``weights_only=True``, or a safetensors file.

    Args:
        source (str): Path, URL or ``torchvision://resnet50``: anything mmengine's CheckpointLoader takes. Weights of a
            local file stay on the disk until they are used.
        ema (bool): Take the exponential moving average that the file has. mmengine's files have it as ``state_dict``,
            and the weights of the training as ``ema_state_dict``: they give the average anyway. Defaults to False.
        map_location (str): Defaults to ``'cpu'``.

    Returns:
        Weights: Tensors by name.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be read.
        ValueError: If the file is damaged, holds more than weights, or no weights.

    Example:
        >>> import torch
        >>> torch.save({'state_dict': {'module.fc.bias': torch.zeros(3)}, 'epoch': 7}, 'example.pth')
        >>> weights = read_weights('example.pth')
        >>> list(weights.tensors), weights.part, weights.meta
        (['fc.bias'], 'state_dict', {'epoch': 7})
    """
    source = str(source)
    content = _read(source, map_location)
    if not isinstance(content, dict):
        raise ValueError(f'{source} holds a {type(content).__name__}, not a dict of weights')
    wanted = _EMA_PARTS if ema and 'ema_state_dict' not in content else _PARTS
    part = next((key for key in wanted if isinstance(content.get(key), dict)), '')
    if ema and not part:
        raise ValueError(
            f'{source} has no exponential moving average: none of ema_state_dict, '
            f'{", ".join(_EMA_PARTS)} is among its keys, {_names(content)}. '
            'Leave --ema out to take the weights themselves'
        )
    state_dict = content[part] if part else content
    tensors, others = {}, {}
    for key, value in state_dict.items():
        name = without_wrappers(str(key))
        if name in tensors:
            raise ValueError(f'{source} has {name} twice, once as {key}')
        if isinstance(value, Tensor):
            tensors[name] = value
        elif not name.endswith('_extra_state') or value is not None:
            others[name] = value
    if not tensors:
        raise ValueError(f'{source} holds no weights: its keys are {_names(content)}')
    meta = {str(key): value for key, value in content.items() if part and key != part and _is_small(value)}
    return Weights(tensors, others, part, meta, _dataset_meta(content.get('meta')))


def without_wrappers(name: str) -> str:
    """A name without what DDP and ``torch.compile`` put before it or into it."""
    return _WRAPPERS.sub('', name)


def _read(source: str, map_location: str) -> Any:
    if '://' not in source:
        if osp.isdir(source):
            raise ValueError(f'{source} is a folder: name the file with the weights in it')
        if not osp.isfile(source):
            raise FileNotFoundError(f'{source} does not exist: give the path of a checkpoint file')
        if not osp.getsize(source):
            raise ValueError(f'{source} is empty (0 bytes): it was not written or downloaded to its end')
        if source.endswith('.safetensors'):
            return _read_safetensors(source, map_location)
    elif source.endswith('.safetensors'):
        raise ValueError(f'{source}: download it first; only local safetensors files are read')
    try:
        if '://' in source:
            with weights_only():
                return CheckpointLoader.load_checkpoint(source, map_location=map_location, logger='current')
        mmap = zipfile.is_zipfile(source) and map_location == 'cpu'
        with weights_only():
            return torch.load(source, map_location=map_location, mmap=mmap)
    except OSError:
        raise  # a failed download or an unreadable disk says so itself
    except Exception as error:
        # torch's messages go on to recommend weights_only=False, and to explain zip files.
        reason = str(error).partition('Re-running')[0].partition('\n')[0].partition('. ')[0].strip()
        reason = reason or type(error).__name__
        unsupported = re.search(r'Unsupported global: GLOBAL (\S+)', str(error))
        if unsupported:
            reason = f'it needs the code of {unsupported[1]}, which is not run: see {_HELP}'
        raise ValueError(
            f'{source} cannot be loaded: it is damaged, no PyTorch file, or holds more than weights ({reason})'
        ) from error


def _read_safetensors(source: str, map_location: str) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError(f'{source} needs a package that is not installed: pip install safetensors') from None
    try:
        return load_file(source, device=map_location)
    except SafetensorError as error:
        raise ValueError(f'{source} cannot be loaded: it is damaged or no safetensors file ({error})') from error


def _dataset_meta(meta: object) -> dict[str, Any]:
    """Class names and colours out of the ``meta`` of OpenMMLab's files; before mmengine they lay in it themselves."""
    if not isinstance(meta, dict):
        return {}
    found = meta.get('dataset_meta')
    if not isinstance(found, dict):
        found = {key: meta[key] for key in ('CLASSES', 'PALETTE') if meta.get(key) is not None}
    result = {str(key).lower(): _without_arrays(value) for key, value in found.items()}
    if isinstance(result.get('classes'), str):
        result['classes'] = (result['classes'],)
    return result


def _without_arrays(value: Any) -> Any:
    """Arrays as lists: every program that reads tensors reads those."""
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _without_arrays(entry) for key, entry in value.items()}
    return type(value)(map(_without_arrays, value)) if isinstance(value, (list, tuple)) else value


def _is_small(value: object) -> bool:
    return isinstance(value, (str, int, float, bool)) or (isinstance(value, dict) and len(str(value)) < 10_000)


def _names(content: dict, limit: int = 8) -> str:
    keys = [repr(key) for key in content]
    return 'none' if not keys else ', '.join(keys[:limit]) + (' ...' if len(keys) > limit else '')
