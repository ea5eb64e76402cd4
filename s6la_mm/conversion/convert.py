"""Turning any checkpoint of a plain, RLA or S6LA network into one for an S6LA backbone.

``tools/model_converters/convert_checkpoint.py`` is the command line of this module.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import os
import os.path as osp
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..backbones.architectures import architectures, find_architecture, on_meta_device
from ..checkpoint.layouts import find_layout, read_layout
from ..checkpoint.matching import (
    CLASS_HEAD,
    NO_PLACE,
    NOT_USED,
    OUTSIDE,
    Entry,
    Match,
    check_finite,
    match_backbone,
    shortened,
)
from ..checkpoint.reading import Weights, read_weights
from ..common.files import complete_or_not
from ..common.model_configs import classes_of_heads, describe_class_names
from ..config_types import type_name
from ..version import __version__
from .verify import largest_difference

TARGETS = ('backbone', 'classifier', 'detector')
STORAGE_TYPES = ('float32', 'float16', 'bfloat16')
TOLERANCE = 1e-5  # of what rounding may make; measured: below 1e-6 for all families
# A larger state: the eps of the map cell's norm weighs more beside a mean over more channels. Measured: 3e-4.
TOLERANCE_LARGER_STATE = 1e-3
_HEAD = re.compile(r'(?:head\.(?:fc\.|layers\.head\.)?|fc\.)(weight|bias)')


@dataclass
class Conversion:
    """The result of :func:`convert_checkpoint`.

    Attributes:
        path (str): The file that was written.
        match (Match): What became of every tensor.
        meta (dict): What the file says about itself, under ``meta``.
        difference (float, optional): The largest relative difference of outputs, if they were compared.
        class_names (str): A sentence on the class names that went with the head; ``''`` if none was kept.
    """

    path: str
    match: Match
    meta: dict[str, Any]
    difference: float | None = None
    class_names: str = ''


def build_backbone(arch: str, options: dict[str, Any] | None = None) -> nn.Module:
    """Builds an S6LA backbone with its initial weights.

    Args:
        arch (str): Name of an architecture, as ``'s6la_r50'``, or path of a config whose ``model.backbone`` it is.
        options (dict, optional): Options of the backbone that go before those of the architecture.

    Returns:
        nn.Module: The backbone.

    Raises:
        ValueError: If there is no such architecture or option.
    """
    if arch.endswith('.py'):
        model = _model_config(arch)
        if 'backbone' not in model:
            raise ValueError(f'{arch} has no model.backbone')
        config = dict(model['backbone'])
        if not type_name(config).startswith('S6LA'):
            raise ValueError(f'the backbone of {arch} is a {config.get("type")}, no S6LA backbone')
    else:
        architecture = find_architecture(arch)
        config = dict(architecture.options, type=architecture.s6la.__name__)
    config.update(options or {}, init_cfg=None)
    try:
        return MODELS.build(config)
    except (TypeError, KeyError, AssertionError) as error:
        raise ValueError(f'{arch} with {options or "no options"} cannot be built: {error}') from error


def _model_config(arch: str) -> dict[str, Any]:
    try:
        return Config.fromfile(arch).get('model', {})
    except (SyntaxError, KeyError, TypeError) as error:
        raise ValueError(f'{arch} is no config: {error}') from error


def convert_checkpoint(
    source: str,
    destination: str,
    arch: str,
    *,
    layout: str = 'auto',
    to: str = 'backbone',
    prefix: str | None = None,
    ema: bool = False,
    options: dict[str, Any] | None = None,
    fresh_reads: bool = False,
    adapt_channels: bool = False,
    dtype: str | None = None,
    allow_partial: bool = False,
    verify: bool = False,
    publish: bool = False,
    seed: int = 0,
) -> Conversion:
    """Converts a checkpoint; nothing is written unless all went well.

    Args:
        source (str): Path, URL or ``torchvision://resnet50``; .pth or .safetensors.
        destination (str): The file to write, .pth.
        arch (str): Architecture or config, see :func:`build_backbone`.
        layout (str): Name of a layout, ``'auto'``, or the path of a JSON file with one. Defaults to ``'auto'``.
        to (str): ``'backbone'``, for ``init_cfg``; ``'classifier'``, a whole mmpretrain model with its head; or
            ``'detector'``, for ``load_from``: the backbone within a detector or segmentor, whose other parts are kept
            where the source has them. Defaults to ``'backbone'``.
        prefix (str, optional): Where the backbone is in the source. Defaults to None: found out.
        ema (bool): Take the exponential moving average. Defaults to False.
        options (dict, optional): Options of the backbone, as ``dict(state_dim=64)``.
        fresh_reads (bool): Start the reads at zero, though the source has some. Defaults to False.
        adapt_channels (bool): Fit the first convolution to images of another number of channels, as
            :func:`~s6la_mm.checkpoint.surgery.fit_input_channels` says. Defaults to False.
        dtype (str, optional): ``'float32'``, ``'float16'`` or ``'bfloat16'``. Defaults to None: as in the source.
        allow_partial (bool): Write the file although tensors of the network do not match. Defaults to False.
        verify (bool): Run both networks and refuse a difference beyond rounding. Defaults to False.
        publish (bool): Append the start of the file's SHA-256 to its name, as OpenMMLab does. Defaults to False.
        seed (int): Of the new parameters. Defaults to 0.

    Returns:
        Conversion: The file and the account.

    Raises:
        FileNotFoundError: If there is no such source.
        OSError: If the destination cannot be written; nothing is left of it.
        ValueError: If an argument is wrong, the source is no checkpoint of the network, or has NaN or Inf.

    Example:
        >>> import torch, torchvision
        >>> torch.save(torchvision.models.resnet18().state_dict(), 'resnet18.pth')
        >>> done = convert_checkpoint('resnet18.pth', 's6la_r18.pth', 's6la_r18')
        >>> done.match.layout, len(done.match.new())
        ('resnet', 33)
    """
    _check_arguments(source, destination, to, dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = build_backbone(arch, options)
    weights = read_weights(source, ema=ema)
    chosen = read_layout(layout) if layout.endswith('.json') else layout
    try:
        match = match_backbone(
            weights,
            backbone,
            layout=chosen,
            prefix=prefix,
            fresh_reads=fresh_reads,
            change_state_dim=True,
            change_channels=adapt_channels,
        )
    except ValueError as error:
        raise ValueError(f'{source} does not fit {arch}: {error}.{_suggest(weights)}') from None
    if match.problems and not allow_partial:
        raise ValueError(
            f'{source} (layout {match.layout}) does not fit {arch}: {match.describe_problems()}.'
            f'{_suggest(weights)} --allow-partial converts what matches'
        )
    lost = [e.source for e in match.entries if e.note in (NO_PLACE, NOT_USED)]
    lost = [key for key in lost if not key.endswith('cls_token')]
    if to == 'detector' and lost and not allow_partial:
        raise ValueError(
            f'{source} has what {arch} has no place for: {shortened(lost)}. Give the config of the detector as '
            'architecture, or its options, as out_indices=[0,1,2,3]; --allow-partial converts what matches'
        )
    check_finite(source, match.tensors)
    state = {**backbone.state_dict(), **match.tensors}
    difference = None
    if verify:
        difference = largest_difference(
            weights, match, backbone, state, lambda n: build_backbone(arch, {**(options or {}), 'state_dim': n})
        )
        old = weights.tensors.get(f'{match.prefix}initial_state')
        resized = old is not None and old.shape != state['initial_state'].shape
        tolerance = TOLERANCE_LARGER_STATE if resized else TOLERANCE
        if not difference <= tolerance:
            raise ValueError(
                f'{source} was converted to a network that computes something else: relative difference '
                f'{difference:.1e}, more than {tolerance:.0e}. '
                + ('A smaller state_dim does that' if resized else f'Is it of another architecture than {arch}?')
            )
    head = backbone.family.head
    state = _place(state, to, match, weights, head)
    if dtype is not None:
        state = {k: v.to(getattr(torch, dtype)) if v.is_floating_point() else v for k, v in state.items()}
        check_finite(f'{source}, cast to {dtype},', state)
    meta = dict(
        source=osp.basename(source),
        source_sha256=None if '://' in source else sha256(source),
        layout=match.layout,
        arch=osp.basename(arch),
        options={key: str(value) for key, value in (options or {}).items()},
        to=to,
        seed=seed,
        s6la_mm_version=__version__,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
    )
    names = ''
    if weights.dataset_meta:
        meta['dataset_meta'] = weights.dataset_meta
    if len(state) > len(backbone.state_dict()):  # with a head
        names = describe_class_names(weights.dataset_meta.get('classes', ()), _classes(state, arch, head), source)
    path = save_checkpoint(dict(meta=meta, state_dict=state), destination, publish)
    return Conversion(path, match, meta, difference, names)


def _check_arguments(source: str, destination: str, to: str, dtype: str | None) -> None:
    if to not in TARGETS:
        raise ValueError(f'to={to!r} is not one of {TARGETS}')
    if dtype is not None and dtype not in STORAGE_TYPES:
        raise ValueError(f'dtype={dtype!r} is not one of {STORAGE_TYPES}')
    if not destination.endswith('.pth'):
        raise ValueError(f'the file to write, {destination}, must end in .pth')
    if osp.exists(destination) and osp.exists(source) and osp.samefile(source, destination):
        raise ValueError(f'{destination} is the source itself, which stays as it is: name another file to write')


def _suggest(weights: Weights) -> str:
    """The architectures that the file does fit, to be named in an error."""
    guesses = guess_architectures(weights)
    return f' It fits {" or ".join(guesses)}.' if guesses else ''


def guess_architectures(weights: Weights) -> list[str]:
    """Names of the architectures that a checkpoint fits."""
    guesses = []
    for architecture in architectures().values():
        try:
            if find_layout(weights.tensors, architecture.family.layouts) is None:
                continue
            with on_meta_device():
                backbone = architecture.s6la(**architecture.options)
            match = match_backbone(weights, backbone, change_state_dim=True, change_channels=True)
        except (ImportError, ValueError):  # without mmpretrain, its architectures are no guesses
            continue
        if not match.problems:
            guesses.append(architecture.s6la_name)
    return guesses


def _place(state: dict[str, Tensor], to: str, match: Match, weights: Weights, head: str) -> dict[str, Tensor]:
    """The backbone within the model that is wanted, with what else the source has for it; completes the entries."""
    if to == 'backbone':
        return state
    placed = {f'backbone.{key}': tensor for key, tensor in state.items()}
    root = re.sub(r'[^.]+\.$', '', match.prefix)  # what the backbone is a part of
    kept = {}
    for i, entry in enumerate(match.entries):
        if entry.target:
            match.entries[i] = replace(entry, target=f'backbone.{entry.target}')
            continue
        name = _new_name(entry, to, root, match, head)
        if name in kept:
            raise ValueError(f'the class head has more than one layer, {entry.source} is one: convert to a backbone')
        if name:
            kept[name] = weights.tensors[entry.source]
            action = 'kept' if name == entry.source else 'renamed'
            match.entries[i] = Entry(entry.source, name, action, '', entry.shape, entry.bytes)
    if to == 'classifier' and not any(name.endswith('.weight') for name in kept):
        raise ValueError('the checkpoint has no class head: convert it to a backbone, and let the config make the head')
    check_finite('the rest of the model', kept)
    return placed | kept


def _new_name(entry: Entry, to: str, root: str, match: Match, head: str) -> str | None:
    """What a tensor beside the backbone is called in the model; None if it has no place there."""
    inside = entry.source[len(root) :] if entry.source.startswith(root) else ''
    if to == 'detector':
        return inside if entry.note == OUTSIDE and match.prefix.endswith('backbone.') else None
    if entry.note == CLASS_HEAD:
        kind = entry.source.rpartition('.')[2]
    elif entry.note == OUTSIDE and (found := _HEAD.fullmatch(inside)):
        kind = found[1]
    else:
        return None
    return f'{head}.{kind}'


def _classes(state: dict[str, Tensor], arch: str, head: str) -> int:
    """Classes of the head that was kept: a classifier's, or as the config says; 0 if neither is there."""
    if f'{head}.weight' in state:
        return len(state[f'{head}.weight'])
    return classes_of_heads(_model_config(arch)) if arch.endswith('.py') else 0


def sha256(path: str) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def save_checkpoint(content: dict, path: str, publish: bool = False) -> str:
    """Writes a checkpoint, which has its name when it is complete.

    Args:
        content (dict): What to save.
        path (str): The file; its folder is made if need be.
        publish (bool): Append the first 8 digits of the file's SHA-256 to the name. Defaults to False.

    Returns:
        str: The file that was written.

    Raises:
        OSError: If it cannot be written; nothing of it is left then.
    """
    file = io.BytesIO()
    torch.save(content, file)
    if publish:
        path = f'{path.removesuffix(".pth")}-{hashlib.sha256(file.getbuffer()).hexdigest()[:8]}.pth'
    try:
        os.makedirs(osp.dirname(osp.abspath(path)), exist_ok=True)
        with complete_or_not(path) as temporary:
            Path(temporary).write_bytes(file.getbuffer())
    except OSError as error:
        raise OSError(f'{path} cannot be written: {error.strerror}') from error
    return path
