"""Training throughput, communication, memory and scaling efficiency over 1 to K processes, with S6LA and without.

On the CPU the processes work together through gloo and share the cores, each with its part of the threads; on GPUs
through NCCL, one each. Nodes are groups of processes with node ranks of their own, all on this machine.

S6LA and the plain network, with and without synchronised gradients, alternate in the same processes, so that their
ratios are paired by round. Process counts are measured one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

import s6la_mm  # noqa: F401  (registers the backbones)
from s6la_mm.benchmarks.distributed import (
    PLAIN,
    S6LA,
    Row,
    Settings,
    measure,
)
from s6la_mm.benchmarks.timing import Spread
from s6la_mm.common.cli import add_cfg_options, clear_errors, load_config
from s6la_mm.common.configs import is_s6la, plain_config
from s6la_mm.common.errors import UsageError


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of a detector or segmentor')
    parser.add_argument('--processes', type=int, nargs='+', default=[1, 2], help='per node; the first is the reference')
    parser.add_argument('--nodes', type=int, nargs='+', default=[1], help='groups of processes on this machine')
    parser.add_argument('--batch', type=int, help="images per process (default: the config's batch size)")
    parser.add_argument('--strong', action='store_true', help='--batch is divided among the processes')
    parser.add_argument('--iterations', type=int, default=10, help='timed rounds after 2 that are not counted')
    parser.add_argument('--shape', type=int, nargs=2, metavar=('H', 'W'), help="random images, not the config's data")
    parser.add_argument('--baseline', action='store_true', help='the plain backbone too, in the same processes')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--cores', type=int, default=len(os.sched_getaffinity(0)), help='CPU cores for all processes together'
    )
    parser.add_argument('--timeout', type=float, default=1800.0, help='seconds after which a launch is stopped')
    parser.add_argument('--json', action='store_true', help='the last line of the output is the result in JSON')
    add_cfg_options(parser)
    args = parser.parse_args()
    numbers = [*args.processes, *args.nodes, args.iterations, args.cores, *(args.shape or [])]
    if min([*numbers, args.timeout]) <= 0 or (args.batch is not None and args.batch < 1):
        parser.error('--processes, --nodes, --batch, --iterations, --shape, --cores and --timeout must be positive')
    return args


def make_settings(args: argparse.Namespace) -> Settings:
    """Settings from the options and the config.

    Raises:
        UsageError: If the plain network of another backbone is asked for.
    """
    cfg = load_config(args.config, args.cfg_options)
    networks = (S6LA,) if is_s6la(cfg) else (PLAIN,)
    if args.baseline:
        plain_config(cfg)
        networks = (S6LA, PLAIN)
    return Settings(
        config=args.config,
        cfg_options=args.cfg_options,
        device=args.device,
        batch=args.batch or cfg.train_dataloader.batch_size,
        strong=args.strong,
        iterations=args.iterations,
        shape=args.shape,
        networks=networks,
        cores=args.cores,
        timeout=args.timeout,
    )


def check_devices(device: str, world_size: int) -> None:
    """Checks that every process gets a GPU of its own.

    Raises:
        UsageError: If there are too few.
    """
    available = torch.cuda.device_count()
    if device == 'cuda' and world_size > available:
        raise UsageError(
            f'{world_size} processes need as many GPUs, and torch sees {available}: ask for fewer --processes or '
            '--nodes, or measure on the CPU with --device cpu'
        )


def with_efficiency(rows: Sequence[Row]) -> list[Row]:
    """Fills in the efficiency: images per second and unit, relative to the network's first row.

    Example:
        >>> row = Row('S6LA', 1, 1, 2, 4, 1, 8.0, [0.5] * 3, None, None, 0, 0)
        >>> two = row._replace(processes=2, units=2, images_per_second=12.0)
        >>> [r.efficiency for r in with_efficiency([row, two])]
        [1.0, 0.75]
    """
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.network, row)
    return [
        row._replace(
            efficiency=(row.images_per_second / row.units)
            / (first[row.network].images_per_second / first[row.network].units)
        )
        for row in rows
    ]


def print_table(rows: list[Row], about: dict, settings: Settings) -> None:
    """Prints what was measured, and how to read it."""
    total = f'{settings.batch} images in all' if settings.strong else f'{settings.batch} images per process'
    backend = f', {about["backend"]}' if about['backend'] else ''
    print(f'{about["device"]}, torch {torch.__version__}{backend}; data: {about["data"]}; {total}')
    if about['left_out']:
        print(f'the plain network has no {", ".join(about["left_out"])}: it was left out, and the ratio includes that')
    print(f'medians of {settings.iterations} alternating rounds, [min .. max]; times are those of the slowest process')
    print(
        f'{"":<8}{"nodes x processes":<20}{"threads":>8}{"images/s":>10}  {"s/iteration":<26}{"data wait":>10}  '
        f'{"exposed communication":<26}{"peak memory":>12}{"efficiency":>12}  S6LA / plain'
    )
    for row in rows:
        wait = '-' if row.data_seconds is None else f'{row.data_seconds:.3f} s'
        share = '-' if row.communication_share is None else str(Spread(*row.communication_share))
        ratio = '' if row.ratio_to_plain is None else str(Spread(*row.ratio_to_plain))
        print(
            f'{row.network:<8}{f"{row.nodes} x {row.processes}":<20}{row.threads:>8}{row.images_per_second:>10.2f}  '
            f'{Spread(*row.seconds)!s:<26}{wait:>10}  {share:<26}{row.peak_bytes / 2**20:>8.0f} MiB'
            f'{row.efficiency:>12.3f}  {ratio}'.rstrip()
        )
    print(
        'Exposed communication: share of the iteration that is gone under no_sync(); what overlaps with the '
        'backward pass is not in it.'
    )
    if settings.device == 'cpu':
        print(
            f'Efficiency: images/s relative to the first row. All rows share the {settings.cores} cores, so 1 means '
            'that nothing is lost; above 1, fewer processes do not keep the cores busy.'
        )
    else:
        print('Efficiency: images/s and GPU, relative to the first row.')


def main() -> None:
    """Measures every number of processes and prints."""
    args = parse_args()
    with clear_errors():
        settings = make_settings(args)
        for nodes in args.nodes:
            for processes in args.processes:
                check_devices(settings.device, nodes * processes)
                settings.batch_per_process(nodes * processes)
        rows, about = [], {}
        for nodes in args.nodes:
            for processes in args.processes:
                measured, said = measure(settings, nodes, processes)
                rows += measured
                about = {**said, 'backend': said['backend'] or about.get('backend')}
    rows = with_efficiency(rows)
    print_table(rows, about, settings)
    if args.json:
        names = dict(
            config=Path(args.config).name, torch=torch.__version__, scaling='strong' if args.strong else 'weak'
        )
        print(json.dumps({**names, **about, 'cores': args.cores, 'rows': [row._asdict() for row in rows]}))


if __name__ == '__main__':
    main()
