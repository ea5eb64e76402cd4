"""Say what is inside a checkpoint: architecture, names, shapes, types, metadata, NaN and Inf; or what two differ in."""

from __future__ import annotations

import argparse
import json

from s6la_mm.common.cli import checkpoint_errors
from s6la_mm.conversion.inspection import compare, describe


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('file', metavar='FILE', help='file, URL or torchvision://resnet50')
    parser.add_argument('--diff', metavar='OTHER', help='compare with this one')
    parser.add_argument('--ema', action='store_true', help='look at the exponential moving average')
    parser.add_argument('--json', action='store_true', help='print everything as JSON')
    return parser.parse_args()


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
    with checkpoint_errors():
        content = compare(args.file, args.diff, ema=args.ema) if args.diff else describe(args.file, ema=args.ema)
    if args.json:
        print(json.dumps(content, default=str))
    elif args.diff:
        print_comparison(content, args.file, args.diff)
    else:
        print_description(content)


if __name__ == '__main__':
    main()
