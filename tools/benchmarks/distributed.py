"""Training throughput, communication, memory and scaling efficiency over 1 to K processes, with S6LA and without.

On the CPU the processes work together through gloo and share the cores, each with its part of the threads; on GPUs
through NCCL, one each.

S6LA and the plain network, with and without synchronised gradients, alternate in the same processes, so that their
ratios are paired by round. Process counts are measured one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch

import s6la_mm  # noqa: F401  (registers the backbones)
from s6la_mm.benchmarks.distributed import PLAIN, S6LA, Job, run_group
from s6la_mm.benchmarks.timing import Spread, describe_device, paired_ratios, spread
from s6la_mm.common.cli import add_cfg_options, clear_errors, load_config
from s6la_mm.common.configs import is_s6la, plain_config
from s6la_mm.common.errors import UsageError


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of a detector or segmentor')
    parser.add_argument('--processes', type=int, nargs='+', default=[1, 2], help='the first is the reference')
    parser.add_argument('--batch', type=int, help="images per process (default: the config's batch size)")
    parser.add_argument('--strong', action='store_true', help='--batch is divided among the processes')
    parser.add_argument('--iterations', type=int, default=10, help='timed rounds after 2 that are not counted')
    parser.add_argument('--shape', type=int, nargs=2, metavar=('H', 'W'), help="random images, not the config's data")
    parser.add_argument('--baseline', action='store_true', help='the plain backbone too, in the same processes')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--cores', type=int, default=len(os.sched_getaffinity(0)), help='CPU cores for all processes together'
    )
    parser.add_argument('--timeout', type=float, default=1800.0, help='seconds after which processes are stopped')
    parser.add_argument('--json', action='store_true', help='the last line of the output is the result in JSON')
    add_cfg_options(parser)
    args = parser.parse_args()
    numbers = [*args.processes, args.iterations, args.cores, *(args.shape or [])]
    if min([*numbers, args.timeout]) <= 0 or (args.batch is not None and args.batch < 1):
        parser.error('--processes, --batch, --iterations, --shape, --cores and --timeout must be positive')
    return args


def check_processes(args: argparse.Namespace) -> None:
    """Checks before anything is measured that every process gets a GPU and images.

    Raises:
        UsageError: If there are too few of them.
    """
    available = torch.cuda.device_count()
    for count in args.processes:
        if args.device == 'cuda' and count > available:
            raise UsageError(
                f'{count} processes need as many GPUs, and torch sees {available}: ask for fewer --processes, or '
                'measure on the CPU with --device cpu'
            )
        if args.strong and args.batch % count:
            raise UsageError(
                f'--strong divides a batch of {args.batch} among the processes, and {count} do not divide it: '
                f'set --batch to a multiple of {count}'
            )


def measure(args: argparse.Namespace, networks: tuple[str, ...], processes: int) -> tuple[list[dict], str]:
    """Measures one number of processes.

    Returns:
        tuple[list[dict], str]: A row for each network, whose lists are median, smallest and largest of the rounds; and
            what the data was.
    """
    batch = args.batch // processes if args.strong else args.batch
    threads = max(1, args.cores // processes)
    job = Job(args.config, args.cfg_options, args.device, batch, args.iterations, args.shape, networks)
    found = run_group(job, processes, threads, args.timeout)
    peaks = {networks[0]: found['peak_bytes']}
    for name in networks[1:]:  # a peak needs processes without another network's memory
        alone = run_group(job._replace(networks=(name,), rounds=0), processes, threads, args.timeout)
        peaks[name] = alone['peak_bytes']
    rows = []
    for name in networks:
        times = found['times'][name]
        seconds = spread(times['synchronised'])
        share = ratio = None
        if processes > 1:
            without = paired_ratios(times['not synchronised'], times['synchronised'])
            share = Spread(1 - without.median, 1 - without.high, 1 - without.low)
        if name == S6LA and PLAIN in networks:
            ratio = paired_ratios(times['synchronised'], found['times'][PLAIN]['synchronised'])
        rows.append(
            dict(
                network=name,
                processes=processes,
                threads=threads,
                batch_per_process=batch,
                images_per_second=batch * processes / seconds.median,
                seconds=seconds,
                data_seconds=found['waits'][name],
                communication_share=share,
                gradient_bytes=found['gradient_bytes'][name],
                peak_bytes=peaks[name],
                ratio_to_plain=ratio,
            )
        )
    return rows, found['data']


def add_efficiency(rows: list[dict], device: str) -> None:
    """Fills in images per second, and per GPU where each process has its own, relative to the network's first row.

    Example:
        >>> rows = [dict(network='S6LA', processes=n, images_per_second=speed) for n, speed in ((1, 8.0), (2, 12.0))]
        >>> add_efficiency(rows, 'cuda')
        >>> [row['efficiency'] for row in rows]
        [1.0, 0.75]
    """
    first: dict[str, float] = {}
    for row in rows:
        speed = row['images_per_second'] / (row['processes'] if device == 'cuda' else 1)
        row['efficiency'] = speed / first.setdefault(row['network'], speed)


def print_table(rows: list[dict], args: argparse.Namespace) -> None:
    """Prints what was measured, and how to read it."""
    print(f'medians of {args.iterations} alternating rounds, [min .. max]; times are those of the slowest process')
    print(
        f'{"":<8}{"processes":<10}{"threads":>8}{"images/s":>10}  {"s/iteration":<26}{"data wait":>10}  '
        f'{"exposed communication":<26}{"peak memory":>12}{"efficiency":>12}  S6LA / plain'
    )
    for row in rows:
        wait = '-' if row['data_seconds'] is None else f'{row["data_seconds"]:.3f} s'
        print(
            f'{row["network"]:<8}{row["processes"]:<10}{row["threads"]:>8}{row["images_per_second"]:>10.2f}  '
            f'{row["seconds"]!s:<26}{wait:>10}  {row["communication_share"] or "-"!s:<26}'
            f'{row["peak_bytes"] / 2**20:>8.0f} MiB{row["efficiency"]:>12.3f}  {row["ratio_to_plain"] or ""}'.rstrip()
        )
    print('Exposed communication: share of the iteration that is gone under no_sync(); what overlaps with the backward')
    print('pass is not in it.')
    if args.device == 'cuda':
        print('Efficiency: images/s and GPU, relative to the first row.')
    else:
        print(f'Efficiency: images/s relative to the first row. All rows share the {args.cores} cores, so 1 means that')
        print('nothing is lost; above 1, fewer processes do not keep the cores busy.')


def main() -> None:
    """Measures every number of processes and prints."""
    args = parse_args()
    with clear_errors():
        cfg = load_config(args.config, args.cfg_options)
        args.batch = args.batch or cfg.train_dataloader.batch_size
        networks, left_out = (S6LA,) if is_s6la(cfg) else (PLAIN,), []
        if args.baseline:
            networks, left_out = (S6LA, PLAIN), plain_config(cfg)[1]
        check_processes(args)
        rows = []
        for processes in args.processes:
            measured, data = measure(args, networks, processes)
            rows += measured
    add_efficiency(rows, args.device)
    device = describe_device(args.device, args.cores)
    images = 'images in all' if args.strong else 'images per process'
    print(f'{device}, torch {torch.__version__}; data: {data}; {args.batch} {images}')
    if left_out:
        print(f'the plain network has no {", ".join(left_out)}: it was left out, and the ratio includes that')
    print_table(rows, args)
    if args.json:
        about = dict(config=Path(args.config).name, torch=torch.__version__, device=device, data=data)
        about.update(left_out=left_out, scaling='strong' if args.strong else 'weak', cores=args.cores)
        print(json.dumps(dict(about, rows=rows)))


if __name__ == '__main__':
    main()
