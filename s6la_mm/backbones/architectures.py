"""The sizes that the S6LA backbones come in, each beside the plain network that it extends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from unittest import mock

import torch
from mmengine.registry import MODELS
from torch import nn

from .families import FAMILIES, Family


@dataclass(frozen=True, eq=False)
class Architecture:
    """A size of a backbone.

    Attributes:
        family (Family): What it is a size of.
        name (str): As on command lines: ``'r50'``, ``'swin-t'`` ...
        title (str): As in tables.
        options (dict): What both networks are built with; they output the last stage, as for a classifier.
        channels (int): Channels of that output.
    """

    family: Family
    name: str
    title: str
    options: dict[str, Any]
    channels: int

    @property
    def plain(self) -> type[nn.Module]:
        """Class of the plain network."""
        return self.family.load_plain(self.options)

    @property
    def s6la(self) -> type[nn.Module]:
        """Class of the S6LA backbone."""
        return self.family.load()

    @property
    def networks(self) -> dict[str, type[nn.Module]]:
        """Classes to measure beside each other, by title: plain, S6LA, and relatives where there are some."""
        networks = dict(plain=self.plain, S6LA=self.s6la)
        if self.family.plain_type(self.options) == self.family.plain_name:  # no RLA-ResNeXt
            networks |= {title: MODELS.get(name) for title, name in self.family.relatives.items()}
        return networks

    @property
    def s6la_name(self) -> str:
        """The name as in ``--arch`` and in messages: ``'s6la_r50'``."""
        return 's6la_' + self.name.replace('-', '_')


@cache
def architectures() -> dict[str, Architecture]:
    """All sizes by name."""
    return {size.name: Architecture(family, *size) for family in FAMILIES for size in family.sizes}


def find_architecture(name: str) -> Architecture:
    """An architecture by its name, however it is spelled: ``'s6la_swin_t'``, ``'S6LA-Swin-T'`` or ``'swin-t'``.

    Raises:
        ValueError: If there is none of that name; the message lists all.

    Example:
        >>> find_architecture('s6la_r50').title
        'ResNet-50'
    """
    key = name.lower().replace('_', '-').removeprefix('s6la-')
    key = next((family.aliases[key] for family in FAMILIES if key in family.aliases), key)
    if key not in architectures():
        names = ', '.join(known.s6la_name for known in architectures().values())
        raise ValueError(f'{name!r} is no architecture: use one of {names}')
    return architectures()[key]


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Within it, networks are built without memory for their weights: what has shapes and no numbers takes no time.

    Example:
        >>> row = find_architecture('r152')
        >>> with on_meta_device():
        ...     sum(p.numel() for p in row.s6la(**row.options).parameters())
        58658272
    """
    # The bases read their drop path rates out of a linspace: those need values.
    with torch.device('meta'), mock.patch('torch.linspace', partial(torch.linspace, device='cpu')):
        yield
