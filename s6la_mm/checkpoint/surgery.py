"""What has to be done to tensors beyond renaming them.

A transform of a layout changes a dict of :class:`Item` in place; ``target`` is the backbone's state dict.
"""

from __future__ import annotations

import re
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


def split_reads(items: Items, target: dict[str, Tensor]) -> None:
    """Splits first convolutions that see [x, h], D + n channels, into the plain convolution and the read.

    conv([x, h]) = conv1(x) + read(h). Where n is not the backbone's state_dim, channels of the read are cut off, or
    zeros are added, which read nothing.
    """
    for key in [key for key in items if re.fullmatch(r'layer\d+\.\d+\.conv1\.weight', key) and key in target]:
        item, plain = items[key], target[key]
        size, wanted = list(item.tensor.shape), list(plain.shape)
        if len(size) != 4 or size[1] <= wanted[1] or size[:1] + size[2:] != wanted[:1] + wanted[2:]:
            continue
        weight, read = item.tensor.split([wanted[1], size[1] - wanted[1]], dim=1)
        items[key] = Item(weight, item.sources, [*item.notes, f'input channels 0 to {wanted[1] - 1}'])
        name = key.replace('conv1', 'read')
        notes = [f'input channels {wanted[1]} to {size[1] - 1}']
        # A file with cells is fitted to another state_dim as a whole, by resize_state.
        if name in target and target[name].shape[1] != read.shape[1] and 'initial_state' not in items:
            notes.append(f'{read.shape[1]} state channels made {target[name].shape[1]}')
            read = _resized(read, 1, target[name].shape[1])
        items[name] = Item(read, item.sources, notes)


def drop_distillation_token(items: Items, target: dict[str, Tensor]) -> None:
    """Takes the entry of DeiT's distillation token out of the position embedding; the token itself has no place."""
    if 'dist_token' in items and 'pos_embed' in items:
        item = items['pos_embed']
        item.tensor = torch.cat((item.tensor[:, :1], item.tensor[:, 2:]), dim=1)
        item.notes.append('without the entry of the distillation token')


def zero_patch_bias(items: Items, target: dict[str, Tensor]) -> None:
    """Adds the bias that mmseg's patch embedding does without by default."""
    weight = items.get('patch_embed.projection.weight')
    if weight is not None and 'patch_embed.projection.bias' not in items:
        bias = weight.tensor.new_zeros(weight.tensor.shape[0])
        items['patch_embed.projection.bias'] = Item(bias, (), ['zeros, as the source has no bias'])


def reorder_patch_merging(items: Items, target: dict[str, Tensor]) -> None:
    """Brings the 4 C inputs of Swin's patch merging into mmcv's order.

    The authors concatenate the four pixels of a patch, column by column: (pixel, C). mmcv's unfold has them row by
    row behind each channel: (C, pixel).
    """
    for key, item in items.items():
        if re.fullmatch(r'stages\.\d+\.downsample\.(reduction|norm)\.(weight|bias)', key):
            shape = item.tensor.shape
            pixels = item.tensor.reshape(*shape[:-1], 4, shape[-1] // 4)[..., [0, 2, 1, 3], :]
            item.tensor = pixels.transpose(-1, -2).reshape(shape)
            item.notes.append('inputs reordered')


def join_q_and_kv(items: Items, target: dict[str, Tensor]) -> None:
    """Makes one input projection of attention out of q and kv."""
    for key in [key for key in items if re.search(r'\.attn\.attn\.q_(weight|bias)$', key)]:
        q, kv = items.pop(key), items.pop(key.replace('.q_', '.kv_'), None)
        if kv is None:
            raise ValueError(f'{q.sources[0]} is in the checkpoint without its counterpart for k and v')
        tensor = torch.cat((q.tensor, kv.tensor))
        items[key.replace('.q_', '.in_proj_')] = Item(tensor, q.sources + kv.sources, ['q and kv joined'])


def fit_ones(items: Items, target: dict[str, Tensor]) -> None:
    """Adds or removes axes of length 1: linear layers as 1 × 1 convolutions or the reverse, scales as (1, 1, 1, C)."""
    for key, item in items.items():
        if key not in target or item.tensor.shape == target[key].shape:
            continue
        wanted = target[key].shape
        if [size for size in item.tensor.shape if size != 1] == [size for size in wanted if size != 1]:
            item.notes.append(f'from {tuple(item.tensor.shape)}')
            item.tensor = item.tensor.reshape(wanted)


TRANSFORMS = {
    transform.__name__: transform
    for transform in (
        split_reads,
        drop_distillation_token,
        zero_patch_bias,
        reorder_patch_merging,
        join_q_and_kv,
        fit_ones,
    )
}
TRANSFORMS['linear_to_convolution'] = fit_ones  # what layout files of users may call it


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


def _resized(tensor: Tensor, axis: int, size: int) -> Tensor:
    if tensor.shape[axis] >= size:
        return tensor.narrow(axis, 0, size)
    shape = list(tensor.shape)
    shape[axis] = size - shape[axis]
    return torch.cat((tensor, tensor.new_zeros(shape)), dim=axis)
