"""Time and memory of S6LA-ResNet against the plain ResNet, in alternating runs of one process.

Machines drift; the ratio of two neighbouring runs does not. Each round times the plain network and then S6LA, and the
table has the median of the rounds' ratios with their spread.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from mmdet.models import ResNet
from torch import nn

from s6la_mm.backbones import S6LAResNet

DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)


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
    args = parser.parse_args()
    if args.rounds < 1 or args.threads < 1 or min(args.shape) < 1:
        parser.error('--rounds, --threads and --shape must be positive')
    return args


def build(name: str, args: argparse.Namespace) -> tuple[nn.Module, torch.Tensor]:
    """Builds a backbone (``'plain'`` or ``'s6la'``) that trains its norms, and its input."""
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    backbone = (S6LAResNet if name == 's6la' else ResNet)(depth=args.depth, in_channels=args.shape[1], norm_eval=False)
    images = torch.rand(*args.shape)
    if args.layout == 'channels_last':
        backbone, images = (
            backbone.to(memory_format=torch.channels_last),
            images.to(memory_format=torch.channels_last),
        )
    return backbone.to(args.device), images.to(args.device)


def step(backbone: nn.Module, images: torch.Tensor, args: argparse.Namespace, backward: bool) -> None:
    """One forward pass in evaluation mode, or one forward and backward pass in training mode."""
    backbone.train(backward)
    autocast = torch.autocast(images.device.type, DTYPES[args.dtype], enabled=args.dtype != 'float32')
    with torch.set_grad_enabled(backward), autocast:
        outs = backbone(images)
    if backward:
        backbone.zero_grad(set_to_none=True)
        sum(out.float().mean() for out in outs).backward()


def seconds(function: Callable[[], None], device: str) -> float:
    """Wall-clock seconds of one call, the device's work included."""
    if device != 'cpu':
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device != 'cpu':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def resident_mib(field: str) -> float:
    """This process's ``VmRSS`` (resident memory now) or ``VmHWM`` (its peak) in MiB, from Linux's /proc.

    Not getrusage: a child starts with its parent's peak there.
    """
    with open('/proc/self/status') as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024


def measure_memory(name: str, args: argparse.Namespace, queue: multiprocessing.Queue) -> None:
    """Puts the peak memory in MiB of training steps into the queue: weights, gradients and activations."""
    before = resident_mib('VmRSS')
    backbone, images = build(name, args)
    for _ in range(2):
        step(backbone, images, args, backward=True)
    on_cpu = args.device == 'cpu'
    queue.put(resident_mib('VmHWM') - before if on_cpu else torch.cuda.max_memory_allocated() / 1024**2)


def peak_memory(name: str, args: argparse.Namespace) -> float:
    """Peak memory in MiB, measured in a process of its own: a peak cannot be reset on the CPU."""
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    process = context.Process(target=measure_memory, args=(name, args, queue))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f'error: the memory measurement of {name} ended with status {process.exitcode}')
    return queue.get()


def main() -> None:
    """Measures and prints the table."""
    args = parse_args()
    plain, s6la = build('plain', args), build('s6la', args)
    device = torch.cuda.get_device_name() if args.device != 'cpu' else f'CPU, {args.threads} threads'
    print(f'ResNet-{args.depth} against S6LA-ResNet-{args.depth}, {device}')
    print(f'{tuple(args.shape)}, {args.layout}, {args.dtype}')
    print(f'torch {torch.__version__}, {args.rounds} alternating rounds; medians, [min .. max] of the paired ratios')
    print(f'{"":<20}{"plain":>12}{"S6LA":>12}{"ratio":>9}')
    for label, backward in (('forward', False), ('forward + backward', True)):
        times: list[tuple[float, float]] = []
        for _ in range(args.rounds + 2):
            pair = [seconds(partial(step, *model, args, backward), args.device) for model in (plain, s6la)]
            times.append((pair[0], pair[1]))
        times = times[2:]
        ratios = sorted(b / a for a, b in times)
        medians = [statistics.median(column) * 1e3 for column in zip(*times)]
        print(
            f'{label:<20}{medians[0]:>9.1f} ms{medians[1]:>9.1f} ms{statistics.median(ratios):>9.3f}'
            f'  [{ratios[0]:.3f} .. {ratios[-1]:.3f}]'
        )
    memory = [peak_memory(name, args) for name in ('plain', 's6la')]
    print(f'{"peak memory":<20}{memory[0]:>8.0f} MiB{memory[1]:>8.0f} MiB{memory[1] / memory[0]:>9.3f}')


if __name__ == '__main__':
    main()
