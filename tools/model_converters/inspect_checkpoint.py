"""Say what is inside a checkpoint: architecture, names, shapes, types, metadata, NaN and Inf; or what two differ in."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any

from torch import Tensor

from s6la_mm.backbones.families import FAMILIES
from s6la_mm.checkpoint import read_weights
from s6la_mm.checkpoint.layouts import find_layout
from s6la_mm.checkpoint.matching import shortened
from s6la_mm.common.cli import checkpoint_errors
from s6la_mm.common.failures import Failures
from s6la_mm.conversion.convert import guess_architectures


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('files', nargs='+', metavar='FILE', help='files, URLs or torchvision://resnet50')
    parser.add_argument('--diff', metavar='OTHER', help='compare with this one')
    parser.add_argument('--ema', action='store_true', help='look at the exponential moving average')
    parser.add_argument('--json', action='store_true', help='print everything as JSON, one line a file')
    args = parser.parse_args()
    if args.diff and len(args.files) > 1:
        parser.error('--diff compares one FILE with OTHER')
    return args


def describe(source: str, *, ema: bool = False) -> dict[str, Any]:
    """Looks into a checkpoint.

    Args:
        source (str): Path, URL or ``torchvision://`` name.
        ema (bool): Look at the exponential moving average. Defaults to False.

    Returns:
        dict[str, Any]: ``part``, ``meta``, ``dataset_meta`` (class names and the like), ``layouts`` (name, backbone,
        prefix), ``architectures`` that it fits,
        ``tensors`` (name, shape, dtype), ``others`` (name, type), ``dtypes`` with their numbers, ``parameters``,
        ``bytes``, and ``not_finite``: tensors with the number of their NaN and Inf.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be read.
        ValueError: If it is damaged, or holds more than weights, or none.
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
        dataset_meta=weights.dataset_meta,
        layouts=find_layouts(tensors),
        architectures=guess_architectures(weights),
        tensors={key: dict(shape=list(t.shape), dtype=dtype_of(t)) for key, t in tensors.items()},
        others={key: type(value).__name__ for key, value in weights.others.items()},
        dtypes=dict(Counter(dtype_of(t) for t in tensors.values())),
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
            dtypes[key] = [dtype_of(a[key]), dtype_of(b[key])]
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


def find_layouts(tensors: dict[str, Tensor]) -> list[dict[str, str]]:
    """The layout of each family that the keys have, or why there is none."""
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


def dtype_of(tensor: Tensor) -> str:
    """A type's name, as ``float32``."""
    return str(tensor.dtype).removeprefix('torch.')


def print_description(content: dict) -> None:
    """Prints what ``describe`` found."""
    for key, tensor in content['tensors'].items():
        print(f'{key:<60} {"x".join(map(str, tensor["shape"])) or "1":<16} {tensor["dtype"]}')
    for key, kind in content['others'].items():
        print(f'{key:<60} a {kind}, no tensor')
    where = f'under {content["part"]!r}' if content['part'] else 'at the top level'
    types = ', '.join(f'{number} {dtype}' for dtype, number in content['dtypes'].items())
    print(f'\n{len(content["tensors"])} tensors {where} ({types})')
    print(f'{content["parameters"]:,} numbers, {content["bytes"] / 2**20:.1f} MiB')
    for layout in content['layouts']:
        text = layout.get('problem') or f'layout {layout["name"]}, prefix {layout["prefix"]!r}'
        print(f'for {layout["backbone"]}: {text}')
    print('fits: ' + (', '.join(content['architectures']) or 'no architecture of s6la_mm as it is'))
    for key, value in content['dataset_meta'].items():
        print(
            f'{key}: {len(value)}: {shortened(map(str, value), 20)}'
            if isinstance(value, (list, tuple))
            else f'{key}: {value}'
        )
    for key, value in content['meta'].items():
        print(f'{key}: {value}')
    for key, count in content['not_finite'].items():
        print(f'NOT FINITE: {key}: {count["nan"]} NaN, {count["inf"]} Inf')


def print_comparison(content: dict, first: str, second: str) -> None:
    """Prints what ``compare`` found."""
    for title, key in ((f'only in {first}', 'only_first'), (f'only in {second}', 'only_second')):
        for name in content[key]:
            print(f'{title}: {name}')
    for name, (a, b) in content['shapes'].items():
        print(f'shape: {name}: {a} and {b}')
    for name, (a, b) in content['dtypes'].items():
        print(f'type: {name}: {a} and {b}')
    for name, difference in content['values'].items():
        print(f'values: {name}: differ by at most {difference:.3g}')
    numbers = ', '.join(
        f'{len(content[key])} {what}'
        for key, what in (
            ('only_first', 'only in the first'),
            ('only_second', 'only in the second'),
            ('shapes', 'of other shape'),
            ('values', 'with other values'),
        )
    )
    print(f'\n{content["equal"]} equal, {numbers}')


def main() -> None:
    """Looks and prints."""
    args = parse_args()
    failures = Failures()
    for path in args.files:
        with failures.of(path), checkpoint_errors():
            content = compare(path, args.diff, ema=args.ema) if args.diff else describe(path, ema=args.ema)
            if len(args.files) > 1 and not args.json:
                print(f'\n{path}')
            if args.json:
                print(json.dumps(content, default=str))
            elif args.diff:
                print_comparison(content, path, args.diff)
            else:
                print_description(content)
    failures.end()


if __name__ == '__main__':
    main()
