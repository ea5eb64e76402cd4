"""Parameters and FLOPs of a config's model by part, with the share of S6LA on its own row."""

from __future__ import annotations

import argparse

import s6la_mm  # noqa: F401  (registers the backbones)
from s6la_mm.analysis.flops import count_flops
from s6la_mm.common.cli import add_cfg_options, clear_errors, load_config
from s6la_mm.common.configs import build_model, package_of
from s6la_mm.common.model_configs import input_channels

SHAPES = dict(mmdet=(800, 1344), mmseg=(512, 512), mmpretrain=(224, 224))  # height and width, by default scope


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    defaults = ', '.join(f'{height} {width} ({scope})' for scope, (height, width) in SHAPES.items())
    parser.add_argument('--shape', type=int, nargs='+', help=f'input height and width (default: {defaults})')
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.shape and (len(args.shape) > 2 or min(args.shape) < 1):
        parser.error(f'--shape {args.shape} must be one or two positive numbers: height and width')
    return args


def main() -> None:
    """Prints the table."""
    args = parse_args()
    with clear_errors():
        cfg = load_config(args.config, args.cfg_options)
    with clear_errors(cfg):
        model = build_model(cfg)
        shape = args.shape or SHAPES.get(package_of(cfg), SHAPES['mmdet'])
        height, width = shape[0], shape[-1]
        channels = input_channels(cfg.model)
        rows = count_flops(model, height, width, channels)
    print(f'{args.config}, one image of {height} × {width}, {channels} channel{"s" * (channels > 1)}')
    print(f'{"part":<16}{"parameters":>14}{"GFLOPs":>12}')
    for name, parameters, flops in rows:
        print(f'{name:<16}{parameters / 1e6:>12.3f} M{flops / 1e9:>12.2f}')
    print('A multiply-add is one FLOP; element-wise operations are not counted, except the compiled state update.')


if __name__ == '__main__':
    main()
