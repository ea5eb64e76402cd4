"""Fitting the weights of a checkpoint to a backbone, with an account of every tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from ..layers import STATE_LAYERS
from .layouts import Layout, find_layout
from .reading import Weights, without_wrappers
from .surgery import Item, Items, adapt_channels, differs_in_channels, input_convolution, resize_state

ACTIONS = ('kept', 'renamed', 'reshaped', 'new', 'left out')
# Notes of what is left out, where it matters why.
CLASS_HEAD, OUTSIDE = 'class head', 'outside of the backbone'
NO_PLACE, NOT_USED = 'not in the backbone', 'not used with these options'
OTHER_CHANNELS = (
    'other number of input channels (adapt_channels=True in init_cfg, or --adapt-channels of the converter, sums or '
    'repeats those of the checkpoint)'
)
# What may lie beside a backbone and be left out: heads, and the norms of outputs that the backbone does not have.
_BESIDE = re.compile(r'(head\w*|fc|fc_norm|aux\w*|classifier|mask_token|ln2|norm\d)(\..+)?')


@dataclass(frozen=True)
class Entry:
    """What became of a tensor.

    Attributes:
        source (str): Its name in the checkpoint, several joined with `` + ``; ``''`` if it is new.
        target (str): Its name in the backbone; ``''`` if it is left out.
        action (str): One of ``ACTIONS``; what is reshaped may be renamed, too.
        note (str): How it was reshaped, or why it was left out.
        shape (tuple[int, ...]): Its shape in the backbone, or in the checkpoint if it is left out.
        bytes (int): Its size there.
    """

    source: str
    target: str
    action: str
    note: str
    shape: tuple[int, ...]
    bytes: int


@dataclass
class Match:
    """The result of :func:`match_backbone`.

    Attributes:
        layout (str): Name of the checkpoint's layout.
        prefix (str): Where the backbone was in it.
        tensors (dict[str, Tensor]): What the checkpoint has for the backbone, by the backbone's names.
        entries (list[Entry]): Every tensor of the checkpoint and of the backbone.
        problems (dict[str, list[str]]): What should match and does not, by kind; empty if all is well.
    """

    layout: str
    prefix: str
    tensors: dict[str, Tensor]
    entries: list[Entry]
    problems: dict[str, list[str]]

    def describe_problems(self) -> str:
        """One sentence part for each kind of problem."""
        return '; '.join(f'{len(keys)} {what}: {shortened(keys)}' for what, keys in self.problems.items())

    def new(self) -> list[str]:
        """Names of the backbone's tensors that the checkpoint does not have."""
        return [entry.target for entry in self.entries if entry.action == 'new']


def match_backbone(
    weights: Weights,
    module: nn.Module,
    *,
    layout: str | Layout = 'auto',
    prefix: str | None = None,
    fresh_reads: bool = False,
    change_state_dim: bool = False,
    change_channels: bool = False,
) -> Match:
    """Fits a checkpoint of a plain or of an S6LA network to an S6LA backbone; neither is changed.

    Args:
        weights (Weights): What :func:`read_weights` returns.
        module (nn.Module): The backbone; ``module.family`` has the layouts that it can be read from.
        layout (str | Layout): Name of one of them, or a layout. Defaults to ``'auto'``: found out by the keys.
        prefix (str, optional): Where the backbone is in a whole model. Defaults to None: found out.
        fresh_reads (bool): Leave the reads of the checkpoint out. Defaults to False.
        change_state_dim (bool): Fit parameters of S6LA to another ``state_dim``. Defaults to False.
        change_channels (bool): Fit the first convolution to images of another number of channels. Defaults to False.

    Returns:
        Match: Tensors for the backbone, and the account.

    Raises:
        ValueError: If the module is no S6LA backbone, none of its layouts fits, it is in the checkpoint more than once,
            or it cannot fit a tensor of its own.
    """
    chosen, prefix = _choose_layout(weights.tensors, module, layout, prefix)
    items, entries = _renamed(weights, chosen, prefix)
    target = module.state_dict()
    state, extras = _new_prefixes(module)
    is_s6la = any(key.startswith(state) for key in items)
    for name in chosen.transforms:
        module.family.transforms[name](items, target)
    if fresh_reads:
        for key in [key for key in items if key.endswith('.read.weight')]:
            entries.append(_entry(items.pop(key), '', 'left out', 'reads start at zero'))
    if change_state_dim:
        resize_state(items, module)
    if change_channels:
        adapt_channels(items, module)
    items = _apply_hook(items, module, entries)

    # A file of an S6LA network has all of its parameters: a missing one means other options.
    may_be_new = extras if is_s6la else state + extras
    may_be_new += tuple(key for key in target if fresh_reads and key.endswith('.read.weight'))
    may_be_new += tuple(key for key in target if is_counter(key) or key.endswith('relative_position_index'))
    other = {
        k: f'{k} {tuple(items[k].tensor.shape)} against {tuple(v.shape)}'
        for k, v in target.items()
        if k in items and items[k].tensor.shape != v.shape
    }
    name, first = input_convolution(module)
    key = f'{name}.weight'
    channels = [other.pop(key)] if key in other and differs_in_channels(items[key].tensor, first) else []
    problems = {
        'other shape': list(other.values()),
        OTHER_CHANNELS: channels,
        'missing from the checkpoint': [k for k in target if k not in items and not k.startswith(may_be_new)],
        NO_PLACE: [k for k in items if k not in target and not _may_lie_beside(k, target)],
    }
    tensors = {}
    for key, item in items.items():
        if key in target and item.tensor.shape == target[key].shape:
            tensors[key] = item.tensor
            action = 'reshaped' if item.notes else 'kept' if item.sources == (prefix + key,) else 'renamed'
            entries.append(_entry(item, key, action))
        else:
            entries.append(_entry(item, '', 'left out', 'other shape' if key in target else NO_PLACE))
    entries += [Entry('', k, 'new', '', tuple(v.shape), v.nbytes) for k, v in target.items() if k not in tensors]
    return Match(chosen.name, prefix, tensors, entries, {k: v for k, v in problems.items() if v})


def _choose_layout(
    tensors: dict[str, Tensor], module: nn.Module, layout: str | Layout, prefix: str | None
) -> tuple[Layout, str]:
    name = type(module).__name__
    if not hasattr(module, 'family'):
        raise ValueError(f'{name} is no S6LA backbone: it has no family, whose layouts of checkpoints it could be of')
    if prefix:
        prefix = without_wrappers(prefix.rstrip('.') + '.')
    candidates = module.family.layouts
    if isinstance(layout, Layout):
        if layout.backbone not in {cls.__name__ for cls in type(module).__mro__}:
            raise ValueError(f'layout {layout.name!r} is of {layout.backbone}, and the backbone is a {name}')
        unknown = sorted(set(layout.transforms) - set(module.family.transforms))
        if unknown:
            known = ', '.join(module.family.transforms) or 'none'
            raise ValueError(f'layout {layout.name!r}: {unknown} are no transforms of {name}, which has {known}')
        candidates = (layout,)
    elif layout != 'auto':
        names = [each.name for each in candidates]
        candidates = [each for each in candidates if each.name == layout]
        if not candidates:
            raise ValueError(f'{layout!r} is no layout of {name}: use auto, {", ".join(names)}, or a JSON file')
    found = find_layout(tensors, candidates, prefix)
    if found is None:
        where = f'under prefix {prefix!r}, ' if prefix else ''
        wanted = ' or '.join(f'{each.markers} ({each.name})' for each in candidates)
        raise ValueError(
            f'{where}the checkpoint is of no network that {name} can start from: the keys {wanted} are missing from '
            f'the checkpoint, whose {len(tensors)} keys are {shortened(tensors)}. Give the checkpoint of another '
            'network, or prefix=... if the backbone is a part of a larger model'
        )
    return found


def _renamed(weights: Weights, layout: Layout, prefix: str) -> tuple[Items, list[Entry]]:
    """The tensors of the network under their new names, and what is left out so far."""
    items: Items = {}
    entries = [
        Entry(key, '', 'left out', f'a {type(v).__name__}, no tensor', (), 0) for key, v in weights.others.items()
    ]
    for key, tensor in weights.tensors.items():
        item = Item(tensor, (key,))
        name = layout.name_of(key[len(prefix) :]) if key.startswith(prefix) else ''
        if name is None:
            entries.append(_entry(item, '', 'left out', f'not needed ({layout.name})'))
        elif not name:
            entries.append(_entry(item, '', 'left out', OUTSIDE))
        elif name.startswith('head.'):
            entries.append(_entry(item, '', 'left out', CLASS_HEAD))
        elif name in items:
            raise ValueError(f'{key} and {items[name].sources[0]} both become {name} in layout {layout.name!r}')
        else:
            items[name] = item
    return items, entries


def _apply_hook(items: Items, module: nn.Module, entries: list[Entry]) -> Items:
    """Lets the backbone fit position embeddings and the like, and finds out what it did."""
    before = {key: item.tensor for key, item in items.items()}
    after = module.convert_checkpoint(before)
    key_of = {id(tensor): key for key, tensor in before.items()}
    result, used = {}, set()
    for key, tensor in after.items():
        origin = key_of.get(id(tensor), key)
        item = items[origin]
        used.add(origin)
        notes = item.notes if tensor is item.tensor else [*item.notes, f'from {tuple(item.tensor.shape)}']
        result[key] = Item(tensor, item.sources, notes)
    entries += [_entry(item, '', 'left out', NOT_USED) for key, item in items.items() if key not in used]
    return result


def _entry(item: Item, target: str, action: str, note: str | None = None) -> Entry:
    """The account of an item; the note is what was done to it unless one is given."""
    note = ', '.join(item.notes) if note is None else note
    return Entry(' + '.join(item.sources), target, action, note, tuple(item.tensor.shape), item.tensor.nbytes)


def _may_lie_beside(key: str, target: dict[str, Tensor]) -> bool:
    """Whether a tensor that the backbone has no place for is no part of it: a head, or a stage after its last one."""
    stage = re.match(r'layer\d\.', key)
    return bool(_BESIDE.fullmatch(key) or (stage and not any(k.startswith(stage[0]) for k in target)))


def is_counter(key: str) -> bool:
    """Whether it is a batch norm's counter of batches, which only matters where momentum is None."""
    return key.endswith('num_batches_tracked')


def check_finite(source: str, tensors: dict[str, Tensor]) -> None:
    """Raises a ValueError that names the tensors with NaN or Inf, if there are any."""
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise ValueError(f'{source} has NaN or Inf in {len(bad)} tensors: {shortened(bad)}')


def _new_prefixes(module: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Starts of the keys that a plain checkpoint need not have: of S6LA, and of plugins, DCN offsets and the like."""
    state, extras = ['initial_state'], [*module.optional_keys()]
    for name, child in module.named_modules():
        if isinstance(child, STATE_LAYERS):
            state.append(f'{name}.')
        if name.endswith('.conv_offset'):
            extras.append(f'{name}.')
        if getattr(child, 'with_plugins', False):
            plugins = [p for i in (1, 2, 3) for p in getattr(child, f'after_conv{i}_plugin_names')]
            extras += [f'{name}.{plugin}.' for plugin in plugins]
    return tuple(state), tuple(extras)


def shortened(keys: Iterable[str], limit: int = 6) -> str:
    """The first few of a list of names, and how many more there are."""
    keys = list(keys)
    return ', '.join(keys[:limit]) + (f' and {len(keys) - limit} more' if len(keys) > limit else '') if keys else 'none'
