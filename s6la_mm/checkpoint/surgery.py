"""What has to be done to tensors beyond renaming them, for more than one family of backbones.

A transform of a layout changes a dict of :class:`Item` in place; ``target`` is the backbone's state dict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..layers import STATE_LAYERS


@dataclass
class Item:
    """A tensor on its way into a backbone: where it comes from, and what was done to it."""

    tensor: Tensor
    sources: tuple[str, ...]
    notes: list[str] = field(default_factory=list)


Items = dict[str, Item]
Transform = Callable[[Items, dict[str, Tensor]], None]


def fit_ones(items: Items, target: dict[str, Tensor]) -> None:
    """Adds or removes axes of length 1: linear layers as 1 × 1 convolutions or the reverse, scales as (1, 1, 1, C)."""
    for key, item in items.items():
        if key not in target or item.tensor.shape == target[key].shape:
            continue
        wanted = target[key].shape
        if [size for size in item.tensor.shape if size != 1] == [size for size in wanted if size != 1]:
            item.notes.append(f'from {tuple(item.tensor.shape)}')
            item.tensor = item.tensor.reshape(wanted)


def input_convolution(module: nn.Module) -> tuple[str, nn.Conv2d]:
    """Name and layer of a backbone's first convolution, that of the stem or of the patch embedding.

    Example:
        >>> from s6la_mm.backbones import S6LAResNet
        >>> input_convolution(S6LAResNet(18, deep_stem=True))[0]
        'stem.0'
    """
    return next((name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d))


def fit_input_channels(weight: Tensor, channels: int) -> Tensor:
    """Fits the weights of a first convolution, (D, C, k, k), to images of another number of channels, as timm does.

    For one channel they are summed: a grey image gives what it gave as an RGB image of three equal channels. For more
    they are repeated in turn (R, G, B, R ...) and scaled by C / ``channels``, so that the outputs keep their size.

    Example:
        >>> import torch
        >>> weight = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
        >>> fit_input_channels(weight, 1).flatten().tolist(), fit_input_channels(weight, 4).flatten().tolist()
        ([6.0], [0.75, 1.5, 2.25, 0.75])
    """
    given = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(channels) % given] * (given / channels)


def differs_in_channels(weight: Tensor, convolution: nn.Conv2d) -> bool:
    """Whether weights fit a first convolution but for the number of channels of images."""
    old, new = weight.shape, convolution.weight.shape
    return len(old) == 4 and old[1] != new[1] and (old[0], *old[2:]) == (new[0], *new[2:])


def adapt_channels(items: Items, module: nn.Module) -> None:
    """Fits the first convolution of a checkpoint to the channels of the backbone: see :func:`fit_input_channels`."""
    name, convolution = input_convolution(module)
    item = items.get(f'{name}.weight')
    if item is not None and differs_in_channels(item.tensor, convolution):
        item.notes.append(f'{item.tensor.shape[1]} input channels made {convolution.in_channels}')
        item.tensor = fit_input_channels(item.tensor, convolution.in_channels)


def resize_state(items: Items, module: nn.Module) -> None:
    """Fits the S6LA parameters of a checkpoint to another ``state_dim``.

    A smaller state keeps the channels that the readers read most, the same ones everywhere. A larger state keeps all:
    what the network computes stays, because nobody reads the new channels yet (up to the eps of the map cell's norm);
    they start from fresh values, and the readers learn to use them.

    Args:
        items (Items): The checkpoint, with the backbone's names; changed in place.
        module (nn.Module): The new backbone, whose values the new channels get.
    """
    target = module.state_dict()
    if 'initial_state' not in items or 'initial_state' not in target:
        return
    old, new = items['initial_state'].tensor.shape[0], target['initial_state'].shape[0]
    if old == new:
        return
    axes_of: dict[str, tuple[int, ...]] = {'initial_state': (0,)}
    for name, layer in module.named_modules():
        if isinstance(layer, STATE_LAYERS):
            axes_of |= {f'{name}.{parameter}': axes for parameter, axes in layer.state_axes.items()}
    kept = _most_read(items, old, new, axes_of)
    for key, axes in axes_of.items():
        if key not in items or key not in target:
            continue
        item = items[key]
        tensor = item.tensor
        if list(tensor.shape) != [old if axis in axes else size for axis, size in enumerate(target[key].shape)]:
            continue
        for axis in axes:
            tensor = tensor.index_select(axis, kept)
        if new > old:
            tensor = _grown(key, tensor, target[key], axes)
        item.tensor = tensor
        item.notes.append(f'state_dim {old} made {new}')


def _most_read(items: Items, old: int, new: int, axes_of: dict[str, tuple[int, ...]]) -> Tensor:
    """Indices of the state channels to keep, in order."""
    if new > old:
        return torch.arange(old)
    reads = torch.zeros(old)
    for key, axes in axes_of.items():
        if key.endswith('.read.weight') and key in items:
            reads += items[key].tensor.float().movedim(axes[0], 0).flatten(1).square().sum(1)
    return reads.topk(new).indices.sort().values


def _grown(key: str, tensor: Tensor, fresh: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The old values in the first channels, fresh ones behind them."""
    grown = fresh.to(tensor.dtype).clone()
    old, new = tensor.shape[axes[0]], grown.shape[axes[0]]
    if key.endswith('.read.weight'):
        grown.zero_()
    elif key.endswith('.in_proj.weight'):
        # Small beside the old ones, as the RMS norm averages over all channels.
        grown.mul_(1e-3)
    elif len(axes) == 2:
        grown[:old].zero_()  # what the old channels write does not depend on the new ones
    elif key.endswith('.input_norm.weight'):
        # The mean of squares over more channels is smaller by old / new.
        tensor = tensor * (old / new) ** 0.5
    grown[tuple(slice(size) for size in tensor.shape)] = tensor
    return grown
