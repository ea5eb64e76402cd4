"""Time and memory of S6LA-ResNet against the plain ResNet and RLA-ResNet, in alternating runs of one process.

Machines drift; the ratio of two neighbouring runs does not. Each round times every network, and the table has the
medians of the rounds' ratios with their spread. ``--scaling`` shows instead how the cost grows with pixels and depth.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from unittest import mock

import torch
from mmdet.models import ResNet
from rla_resnet import RLAResNet
from torch import nn

from s6la_mm.backbones import S6LAResNet
from s6la_mm.ops import extension
from s6la_mm.utils.benchmark import (
    PeakMemory,
    alternating_rounds,
    describe_device,
    paired_ratios,
    run_in_child,
    spread,
)

DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)
NETWORKS = {'plain': ResNet, 'S6LA': S6LAResNet, 'RLA': RLAResNet}
PASSES = {'forward, eval': False, 'forward + backward': True}


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--depth', type=int, default=50, choices=[18, 34, 50, 101, 152])
    parser.add_argument('--shape', type=int, nargs=4, default=[2, 3, 320, 320], metavar=('B', 'C', 'H', 'W'))
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--dtype', choices=DTYPES, default='float32', help='other than float32: under autocast')
    parser.add_argument('--layout', choices=['channels_last', 'contiguous'], default='channels_last')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='CPU threads')
    parser.add_argument('--rounds', type=int, default=10, help='timed rounds after 2 that are not counted')
    parser.add_argument('--eager', action='store_true', help='S6LA without its compiled op, though it is there')
    parser.add_argument('--scaling', action='store_true', help='the cost over --sizes and --depths')
    parser.add_argument('--sizes', type=int, nargs='*', default=[224, 448, 896], help='image sizes, at --depth')
    parser.add_argument('--depths', type=int, nargs='*', default=[50, 101, 152], help='at --shape')
    args = parser.parse_args()
    if min(args.rounds, args.threads, *args.shape, *args.sizes) < 1:
        parser.error('--rounds, --threads, --shape and --sizes must be positive')
    if not set(args.depths) <= set(ResNet.arch_settings):
        parser.error(f'--depths must be out of {tuple(ResNet.arch_settings)}')
    return args


def set_up(args: argparse.Namespace) -> None:
    """What every process of a measurement needs."""
    torch.set_num_threads(args.threads)
    if args.eager:
        mock.patch.multiple(
            extension, compiled_devices=lambda: frozenset(), warn_not_compiled=lambda device: None
        ).start()


def describe_update(args: argparse.Namespace) -> str:
    """Which code updates the state."""
    if args.eager:
        return 'the PyTorch formula, because of --eager'
    if torch.device(args.device).type in extension.compiled_devices():
        return f'compiled, {extension.build_info()}'
    return f'the PyTorch formula: NOT COMPILED for {args.device} ({extension.load_error() or "built without it"})'


def build(name: str, args: argparse.Namespace) -> tuple[nn.Module, torch.Tensor]:
    """Builds one of ``NETWORKS``, which trains its norms, and its input."""
    torch.manual_seed(0)
    backbone = NETWORKS[name](depth=args.depth, in_channels=args.shape[1], norm_eval=False)
    images = torch.rand(*args.shape)
    if args.layout == 'channels_last':
        backbone, images = (
            backbone.to(memory_format=torch.channels_last),
            images.to(memory_format=torch.channels_last),
        )
    return backbone.to(args.device), images.to(args.device)


def step(backbone: nn.Module, images: torch.Tensor, args: argparse.Namespace, backward: bool) -> None:
    """One forward pass in inference mode, or one forward and backward pass in training mode."""
    backbone.train(backward)
    autocast = torch.autocast(images.device.type, DTYPES[args.dtype], enabled=args.dtype != 'float32')
    with torch.inference_mode(not backward), autocast:
        outs = backbone(images)
    if backward:
        backbone.zero_grad(set_to_none=True)
        sum(out.float().mean() for out in outs).backward()


def measure(names: Sequence[str], args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds by pass and network, a list over the rounds."""
    models = {name: build(name, args) for name in names}
    return {
        label: alternating_rounds(
            {name: partial(step, *model, args, backward) for name, model in models.items()}, args.rounds, args.device
        )
        for label, backward in PASSES.items()
    }


def training_memory(name: str, args: argparse.Namespace) -> float:
    """Peak memory in MiB of training steps: weights, gradients and activations; for a process of its own."""
    set_up(args)
    with PeakMemory(args.device) as peak:
        backbone, images = build(name, args)
        for _ in range(2):
            step(backbone, images, args, backward=True)
    return peak.bytes / 2**20


def print_comparison(args: argparse.Namespace) -> None:
    """Prints the table of the three networks."""
    print(f'ResNet-{args.depth}, {tuple(args.shape)}')
    print(f'{"":<20}{"plain":>12}{"S6LA":>12}{"RLA":>12}  {"S6LA / plain":<25}{"RLA / plain":<25}S6LA / RLA')
    for label, times in measure(tuple(NETWORKS), args).items():
        cells = ''.join(f'{spread(times[name]).median * 1e3:>9.1f} ms' for name in NETWORKS)
        ratios = [paired_ratios(times[a], times[b]) for a, b in (('S6LA', 'plain'), ('RLA', 'plain'), ('S6LA', 'RLA'))]
        print(f'{label:<20}{cells}  ' + ''.join(f'{ratio!s:<25}' for ratio in ratios).rstrip())
    memory = {name: run_in_child(training_memory, name, args) for name in NETWORKS}
    cells = ''.join(f'{value:>8.0f} MiB' for value in memory.values())
    ratios = [memory['S6LA'] / memory['plain'], memory['RLA'] / memory['plain'], memory['S6LA'] / memory['RLA']]
    print(f'{"peak memory":<20}{cells}  ' + ''.join(f'{ratio:<25.3f}' for ratio in ratios).rstrip())


def print_scaling(args: argparse.Namespace) -> None:
    """Prints two tables: a growing image and a growing depth, with the time per megapixel and per block."""
    batch, channels, height, width = args.shape
    sizes = [
        (f'{size} x {size}', batch * size**2 / 1e6, dict(shape=[batch, channels, size, size])) for size in args.sizes
    ]
    depths = [(f'ResNet-{depth}', sum(ResNet.arch_settings[depth][1]), dict(depth=depth)) for depth in args.depths]
    for title, unit, cases in (
        (f'pixels: ResNet-{args.depth}, batch {batch}', 'megapixel', sizes),
        (f'depth: {(batch, channels, height, width)}', 'block', depths),
    ):
        print(f'\n{title}; "added" is S6LA - plain')
        print(f'{"":<32}{"plain":>12}{"S6LA":>12}  {"S6LA / plain":<25}{"S6LA":>10}{"added":>10}  ms per {unit}')
        for name, units, changes in cases:
            case = argparse.Namespace(**{**vars(args), **changes})
            for label, times in measure(('plain', 'S6LA'), case).items():
                plain, s6la = (spread(times[key]).median * 1e3 for key in ('plain', 'S6LA'))
                added = spread([(b - a) * 1e3 for a, b in zip(times['plain'], times['S6LA'])]).median
                print(
                    f'{name:<12}{label:<20}{plain:>9.1f} ms{s6la:>9.1f} ms  '
                    f'{paired_ratios(times["S6LA"], times["plain"])!s:<25}{s6la / units:>10.2f}{added / units:>10.2f}'
                )


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    set_up(args)
    print(f'{describe_device(args.device)}, torch {torch.__version__}, {args.layout}, {args.dtype}')
    print(f'state update: {describe_update(args)}')
    print(f'{args.rounds} alternating rounds; medians, [min .. max] of the ratios paired by round')
    (print_scaling if args.scaling else print_comparison)(args)


if __name__ == '__main__':
    main()
