"""What is inside a checkpoint, and what differs between two."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor

from ..backbones.families import FAMILIES
from ..checkpoint.layouts import find_layout
from ..checkpoint.reading import read_weights
from .convert import guess_architectures


def describe(source: str, *, ema: bool = False) -> dict[str, Any]:
    """Looks into a checkpoint.

    Args:
        source (str): Path, URL or ``torchvision://`` name.
        ema (bool): Look at the exponential moving average. Defaults to False.

    Returns:
        dict[str, Any]: ``part``, ``meta``, ``layouts`` (name, backbone, prefix), ``architectures`` that it fits,
        ``tensors`` (name, shape, dtype), ``others`` (name, type), ``dtypes`` with their numbers, ``parameters``,
        ``bytes``, and ``not_finite``: tensors with the number of their NaN and Inf.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be read.
        ValueError: If it is damaged, or holds more than weights, or none.

    Example:
        >>> import torch
        >>> torch.save({'weight': torch.tensor([1.0, float('nan')])}, 'example.pth')
        >>> describe('example.pth')['not_finite']
        {'weight': {'nan': 1, 'inf': 0}}
    """
    weights = read_weights(source, ema=ema)
    tensors = weights.tensors
    not_finite = {}
    for key, tensor in tensors.items():
        if tensor.is_floating_point():
            nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
            if nan or inf:
                not_finite[key] = dict(nan=nan, inf=inf)
    return dict(
        part=weights.part,
        meta=weights.meta,
        layouts=_layouts(tensors),
        architectures=guess_architectures(weights),
        tensors={key: dict(shape=list(t.shape), dtype=_dtype(t)) for key, t in tensors.items()},
        others={key: type(value).__name__ for key, value in weights.others.items()},
        dtypes=dict(Counter(_dtype(t) for t in tensors.values())),
        parameters=sum(t.numel() for t in tensors.values()),
        bytes=sum(t.nbytes for t in tensors.values()),
        not_finite=not_finite,
    )


def compare(first: str, second: str, *, ema: bool = False) -> dict[str, Any]:
    """Compares two checkpoints, name by name.

    Args:
        first (str): Path, URL or ``torchvision://`` name.
        second (str): The other one.
        ema (bool): Compare the exponential moving averages. Defaults to False.

    Returns:
        dict[str, Any]: ``only_first``, ``only_second`` (names), ``shapes`` (name: both shapes), ``dtypes`` (name:
        both), ``values`` (name: the largest absolute difference, NaN where one has a NaN), ``equal``: the number of
        tensors that are the same.
    """
    a, b = (read_weights(source, ema=ema).tensors for source in (first, second))
    shapes, dtypes, values, equal = {}, {}, {}, 0
    for key in [key for key in a if key in b]:
        if a[key].shape != b[key].shape:
            shapes[key] = [list(a[key].shape), list(b[key].shape)]
            continue
        if a[key].dtype != b[key].dtype:
            dtypes[key] = [_dtype(a[key]), _dtype(b[key])]
        difference = float((a[key].double() - b[key].double()).abs().max()) if a[key].numel() else 0.0
        if difference == 0.0 and key not in dtypes:
            equal += 1
        elif difference != 0.0:
            values[key] = difference
    return dict(
        only_first=[key for key in a if key not in b],
        only_second=[key for key in b if key not in a],
        shapes=shapes,
        dtypes=dtypes,
        values=values,
        equal=equal,
    )


def _layouts(tensors: dict[str, Tensor]) -> list[dict[str, str]]:
    found = []
    for family in FAMILIES:
        try:
            match = find_layout(tensors, family.layouts)
        except ValueError as error:
            found.append(dict(backbone=family.name, problem=str(error)))
            continue
        if match is not None:
            found.append(dict(backbone=family.name, name=match[0].name, prefix=match[1]))
    return found


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix('torch.')
