"""Time and memory of the S6LA backbones against their bases, and RLA-ResNet, in alternating runs of one process.

Machines drift; the ratio of two neighbouring runs does not. Each round times every network, and the table has the
medians of the rounds' ratios with their spread. ``--scaling`` shows instead how the cost grows with pixels and depth.

Base and S6LA have the same options; norms train, nothing is dropped, and every read has weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from unittest import mock

import torch
from mmcv.cnn import fuse_conv_bn
from torch import nn

from s6la_mm.backbones.architectures import architectures
from s6la_mm.benchmarks.timing import (
    PeakMemory,
    alternating_rounds,
    describe_device,
    paired_ratios,
    run_in_child,
    spread,
)
from s6la_mm.layers import StateRead, TokenRead
from s6la_mm.ops import extension

MODELS = architectures()
TYPES = ('float32', 'bfloat16', 'float16')
PASSES = {'forward, eval': False, 'forward + backward': True}
RATIOS = (('S6LA', 'plain'), ('RLA', 'plain'), ('S6LA', 'RLA'))


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', nargs='+', default=['r50'], choices=MODELS, metavar='ARCH', help=', '.join(MODELS))
    parser.add_argument(
        '--shape',
        type=int,
        nargs=4,
        metavar=('B', 'C', 'H', 'W'),
        help='default: 2 3 320 320, or 224 224 if no ResNet',
    )
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--dtype', choices=TYPES, default='float32', help='other than float32: under autocast')
    parser.add_argument(
        '--layout', choices=['channels_last', 'contiguous'], help='default: channels_last for ResNets, else contiguous'
    )
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='CPU threads')
    parser.add_argument('--rounds', type=int, default=10, help='timed rounds after 2 that are not counted')
    parser.add_argument('--eager', action='store_true', help='S6LA without its compiled op, though it is there')
    parser.add_argument(
        '--fuse-conv-bn',
        action='store_true',
        help='batch norms folded into the convolutions before them, evaluation alone',
    )
    parser.add_argument('--scaling', action='store_true', help='the cost over --sizes and over all --arch')
    parser.add_argument('--sizes', type=int, nargs='*', default=[224, 448, 896], help='of images, at the first --arch')
    args = parser.parse_args()
    if min(args.rounds, args.threads, *(args.shape or []), *args.sizes) < 1:
        parser.error('--rounds, --threads, --shape and --sizes must be positive')
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


def input_of(arch: str, args: argparse.Namespace) -> tuple[tuple[int, ...], str]:
    """Shape and memory layout of the images."""
    family = MODELS[arch].family
    layout = args.layout or ('channels_last' if family.channels_last else 'contiguous')
    return tuple(args.shape or (2, 3, family.image_size, family.image_size)), layout


def build(name: str, arch: str, args: argparse.Namespace) -> tuple[nn.Module, torch.Tensor]:
    """Builds one of the networks of an architecture, and its input."""
    torch.manual_seed(0)
    model = MODELS[arch]
    shape, layout = input_of(arch, args)
    images = torch.rand(*shape)
    backbone = model.networks[name](in_channels=shape[1], **model.options, **model.family.measured_with)
    for module in backbone.modules():
        if isinstance(module, (StateRead, TokenRead)):  # which start at zero
            nn.init.normal_(module.weight, std=0.02)
    if layout == 'channels_last':
        backbone, images = (
            backbone.to(memory_format=torch.channels_last),
            images.to(memory_format=torch.channels_last),
        )
    return backbone.to(args.device), images.to(args.device)


def step(backbone: nn.Module, images: torch.Tensor, args: argparse.Namespace, backward: bool) -> None:
    """One forward pass in inference mode, or one forward and backward pass in training mode."""
    backbone.train(backward)
    is_float32 = args.dtype == 'float32'
    autocast = nullcontext() if is_float32 else torch.autocast(images.device.type, getattr(torch, args.dtype))
    with torch.inference_mode(not backward), autocast:
        outs = backbone(images)
    if backward:
        backbone.zero_grad(set_to_none=True)
        # Half of the channels: behind a layer norm, the mean over all of them has no gradient.
        sum(out[:, ::2].float().mean() for out in outs).backward()


def measure(names: Sequence[str], arch: str, args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds by pass and network, a list over the rounds."""
    networks = {name: build(name, arch, args) for name in names}
    for backbone, _ in networks.values():
        if args.fuse_conv_bn:
            fuse_conv_bn(backbone)
    return {
        label: alternating_rounds(
            {name: partial(step, *network, args, backward) for name, network in networks.items()},
            args.rounds,
            args.device,
        )
        for label, backward in PASSES.items()
        if not (backward and args.fuse_conv_bn)
    }


def training_memory(name: str, arch: str, args: argparse.Namespace) -> float:
    """Peak memory in MiB of training steps: weights, gradients and activations; for a process of its own."""
    set_up(args)
    with PeakMemory(args.device) as peak:
        backbone, images = build(name, arch, args)
        for _ in range(2):
            step(backbone, images, args, backward=True)
    return peak.bytes / 2**20


def describe_input(arch: str, args: argparse.Namespace) -> str:
    """Shape and layout of what is measured."""
    shape, layout = input_of(arch, args)
    return f'{shape}, {layout}'


def print_comparison(arch: str, args: argparse.Namespace) -> None:
    """Prints the table of one arch's networks."""
    names = list(MODELS[arch].networks)
    pairs = [pair for pair in RATIOS if set(pair) <= set(names)]
    print(f'\n{MODELS[arch].title}, {describe_input(arch, args)}')
    titles = ''.join(f'{f"{a} / {b}":<25}' for a, b in pairs)
    print(f'{"":<20}{"".join(f"{name:>12}" for name in names)}  {titles.rstrip()}')
    for label, times in measure(names, arch, args).items():
        cells = ''.join(f'{spread(times[name]).median * 1e3:>9.1f} ms' for name in names)
        ratios = ''.join(f'{paired_ratios(times[a], times[b])!s:<25}' for a, b in pairs)
        print(f'{label:<20}{cells}  {ratios.rstrip()}')
    if args.fuse_conv_bn:
        return
    memory = {name: run_in_child(training_memory, name, arch, args) for name in names}
    cells = ''.join(f'{value:>8.0f} MiB' for value in memory.values())
    ratios = ''.join(f'{memory[a] / memory[b]:<25.3f}' for a, b in pairs)
    print(f'{"peak memory":<20}{cells}  {ratios.rstrip()}')


def print_scaling(args: argparse.Namespace) -> None:
    """Prints two tables: a growing image and a growing depth, with the time per megapixel and per block that reads."""
    first = args.arch[0]
    batch, channels, *_ = input_of(first, args)[0]
    sizes = [
        (f'{size} x {size}', batch * size**2 / 1e6, first, dict(shape=[batch, channels, size, size]))
        for size in args.sizes
    ]
    depths = [(MODELS[arch].title, count_reads(arch), arch, {}) for arch in args.arch]
    for title, unit, cases in (
        (f'pixels: {MODELS[first].title}, batch {batch}', 'megapixel', sizes),
        (f'depth: {describe_input(first, args)}', 'block', depths),
    ):
        print(f'\n{title}; "added" is S6LA - plain')
        print(f'{"":<32}{"plain":>12}{"S6LA":>12}  {"S6LA / plain":<25}{"S6LA":>10}{"added":>10}  ms per {unit}')
        for name, units, arch, changes in cases:
            case = argparse.Namespace(**{**vars(args), **changes})
            for label, times in measure(('plain', 'S6LA'), arch, case).items():
                plain, s6la = (spread(times[key]).median * 1e3 for key in ('plain', 'S6LA'))
                added = spread([(b - a) * 1e3 for a, b in zip(times['plain'], times['S6LA'])]).median
                print(
                    f'{name:<12}{label:<20}{plain:>9.1f} ms{s6la:>9.1f} ms  '
                    f'{paired_ratios(times["S6LA"], times["plain"])!s:<25}{s6la / units:>10.2f}{added / units:>10.2f}'
                )


def count_reads(arch: str) -> int:
    """Blocks that read the state: all, except the last of a vision transformer with a class token."""
    return sum(
        isinstance(module, (StateRead, TokenRead)) for module in MODELS[arch].s6la(**MODELS[arch].options).modules()
    )


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    set_up(args)
    print(f'{describe_device(args.device)}, torch {torch.__version__}, {args.dtype}')
    print(f'state update: {describe_update(args)}')
    print(f'{args.rounds} alternating rounds; medians, [min .. max] of the ratios paired by round')
    if args.scaling:
        print_scaling(args)
    else:
        for arch in args.arch:
            print_comparison(arch, args)


if __name__ == '__main__':
    main()
