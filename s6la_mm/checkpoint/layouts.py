"""How the sources of checkpoints name and shape what the S6LA backbones have, as data.

A layout says how its files are told from others, what its keys are called in the backbone, and what has to be done to
tensors beyond renaming them. The backbones' own names are mmdet's and mmpretrain's. A class head is called ``head.``
in every layout. The layouts of a family stand in its file in ``backbones/families``; a user's come from a JSON file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Names of a family of checkpoints.

    Attributes:
        name (str): As in ``--from``.
        markers (tuple[str, ...]): Keys that every file of this layout has; of two layouts whose markers a file has, it
            is the one that comes first.
        rename (tuple[tuple[str, str], ...]): Regular expression of a whole key, and what it becomes; the first that
            fits counts, and a key that none fits keeps its name.
        drop (tuple[str, ...]): Regular expressions of keys that have no place in a backbone and are no loss: buffers
            that are computed, and what belongs to another way of aggregating layers.
        transforms (tuple[str, ...]): Names of the family's ``transforms``, in order.
        backbone (str, optional): Class that it can be read into, which a JSON file names.
    """

    name: str
    markers: tuple[str, ...]
    rename: tuple[tuple[str, str], ...] = ()
    drop: tuple[str, ...] = ()
    transforms: tuple[str, ...] = ()
    backbone: str | None = None

    def name_of(self, key: str) -> str | None:
        """What a key is called in the backbone; None if it is to be dropped."""
        if any(re.fullmatch(pattern, key) for pattern in self.drop):
            return None
        for pattern, replacement in self.rename:
            match = re.fullmatch(pattern, key)
            if match:
                return match.expand(replacement)
        return key


def read_layout(path: str) -> Layout:
    """Reads a layout from a JSON file: an object with the attributes of :class:`Layout`.

    Raises:
        ValueError: If the file is no such object.
        OSError: If it cannot be read.
    """
    with open(path, encoding='utf-8') as file:
        try:
            content = json.load(file)
        except ValueError as error:
            raise ValueError(f'{path} is no JSON: {error}') from None
    known = [field.name for field in fields(Layout)]
    needed = ('name', 'backbone', 'markers')
    if not isinstance(content, dict) or not set(needed) <= set(content) <= set(known):
        raise ValueError(f'{path} must hold an object with the keys {needed} and, if wanted, others of {known}')
    for key in ('markers', 'drop', 'transforms'):
        if not isinstance(content.get(key, []), list) or not all(isinstance(v, str) for v in content.get(key, [])):
            raise ValueError(f'{path}: {key} must be a list of strings')
        content[key] = tuple(content.get(key, ()))
    rules = content.get('rename', [])
    if not content['markers']:
        raise ValueError(f'{path}: markers must name a key at least')
    if not isinstance(rules, list) or not all(_is_rule(rule) for rule in rules):
        raise ValueError(f'{path}: rename must be a list of [regular expression, replacement]')
    content['rename'] = tuple(tuple(rule) for rule in rules)
    for pattern, replacement in (*((pattern, '') for pattern in content['drop']), *rules):
        try:
            re.sub(pattern, replacement, '')
        except (re.error, IndexError) as error:
            raise ValueError(f'{path}: {pattern!r} is no regular expression for {replacement!r}: {error}') from None
    return Layout(**content)


def _is_rule(rule: object) -> bool:
    return isinstance(rule, list) and len(rule) == 2 and all(isinstance(part, str) for part in rule)


def find_layout(
    weights: dict[str, Tensor], layouts: Iterable[Layout], prefix: str | None = None
) -> tuple[Layout, str] | None:
    """Finds out which layout a checkpoint has, and where in it.

    Args:
        weights (dict[str, Tensor]): Tensors by name.
        layouts (Iterable[Layout]): Candidates, the more special ones first.
        prefix (str, optional): What the names of the backbone start with. Defaults to None: found out.

    Returns:
        tuple[Layout, str] | None: The layout and the prefix (ends with a dot, or is empty); None if none fits.

    Raises:
        ValueError: If a network of the layout is there more than once.
    """
    for layout in layouts:
        first, *rest = layout.markers
        ends = [key[: -len(first)] for key in weights if key.endswith(first)] if prefix is None else [prefix]
        found = [
            end
            for end in ends
            if (not end or end.endswith('.')) and all(end + marker in weights for marker in (first, *rest))
        ]
        if len(found) > 1:
            raise ValueError(f'there are {len(found)} networks in the checkpoint, at {found}: name one with prefix')
        if found:
            return layout, found[0]
    return None
