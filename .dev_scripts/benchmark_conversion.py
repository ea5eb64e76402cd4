"""Time and memory of converting checkpoints of random weights, each in a process of its own."""

from __future__ import annotations

import argparse
import os
import tempfile
import time

import torch

from s6la_mm.backbones.architectures import architectures, find_architecture
from s6la_mm.benchmarks.timing import PeakMemory, run_in_child
from s6la_mm.conversion.convert import convert_checkpoint


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--arch', nargs='+', default=['r50', 'deit-b', 'vit-l'], choices=architectures(), metavar='ARCH'
    )
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='CPU threads')
    return parser.parse_args()


def convert(source: str, destination: str, arch: str, threads: int) -> tuple[float, int]:
    """Seconds and peak memory in bytes beyond what the process had before; for a process of its own."""
    torch.set_num_threads(threads)
    with PeakMemory('cpu') as peak:
        start = time.perf_counter()
        convert_checkpoint(source, destination, arch)
        seconds = time.perf_counter() - start
    return seconds, peak.bytes


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    print(f'torch {torch.__version__}, {args.threads} threads')
    print(f'{"":<12}{"file":>10}{"time":>10}{"memory":>12}  memory / file')
    for arch in args.arch:
        architecture = find_architecture(arch)
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, 'source.pth')
            torch.save(architecture.plain(**architecture.options).state_dict(), source)
            size = os.path.getsize(source)
            seconds, memory = run_in_child(convert, source, os.path.join(folder, 'out.pth'), arch, args.threads)
        print(f'{arch:<12}{size / 1e6:>7.0f} MB{seconds:>8.1f} s{memory / 1e6:>9.0f} MB  {memory / size:.2f}')


if __name__ == '__main__':
    main()
