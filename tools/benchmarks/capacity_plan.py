"""Capacity plan: memory, communication and efficiency of training on 1 to 1024 GPUs, from measured bytes and FLOPs.

Bytes and FLOPs are measured on the CPU. Bandwidths, latency and the speed of a GPU are assumptions, given as options.
``--write`` puts the tables between the marks of a document.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

import s6la_mm  # noqa: F401  (registers the backbones)
from s6la_mm.benchmarks import capacity
from s6la_mm.benchmarks.capacity import Cluster, Measured
from s6la_mm.common.cli import clear_errors, load_config, require_file
from s6la_mm.common.errors import UsageError
from s6la_mm.common.files import replace_between

ROOT = Path(__file__).parents[2]
BEGIN, END = '<!-- tables of tools/benchmarks/capacity_plan.py -->', '<!-- end of the tables -->'
DEPTHS = (50, 101)
NETWORKS = ('plain', 'S6LA', 'S6LA, with_cp')
SMALLER = ((256, 384), (512, 768))  # from which the full size is extrapolated, as a check of the measurement
MB, GIB = 1e6, 2**30


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--measurements', type=Path, help='file of measurements: read, or written if it is not there')
    parser.add_argument('--write', type=Path, metavar='DOCUMENT', help='put the tables between its marks')
    parser.add_argument('--gpus', type=int, nargs='+', default=[1, 8, 64, 256, 1024])
    parser.add_argument('--batch', type=int, default=2, help='images per GPU')
    parser.add_argument('--shape', type=int, nargs=2, default=[800, 1344], metavar=('H', 'W'))
    parser.add_argument('--tflops', type=float, default=40.0, help='sustained by a GPU; a multiply-add is two')
    parser.add_argument('--gpus-per-node', type=int, default=8)
    parser.add_argument('--intra', type=float, default=400.0, help='GB/s that a GPU sends inside a node')
    parser.add_argument(
        '--inter', type=float, nargs=2, default=[50.0, 25.0], help='GB/s that a GPU sends to other nodes'
    )
    parser.add_argument('--latency', type=float, default=5.0, help='microseconds of a step of the ring')
    parser.add_argument('--images', type=int, default=117266, help='of an epoch; default: COCO train2017, as filtered')
    parser.add_argument('--largest-batch', type=int, default=256, help='for which the linear rule is trusted')
    args = parser.parse_args()
    numbers = [*args.gpus, args.batch, *args.shape, args.gpus_per_node, args.images, args.largest_batch]
    if min([*numbers, args.tflops, args.intra, *args.inter]) <= 0 or args.latency < 0:
        parser.error('all options must be positive')
    return args


def config_of(depth: int) -> Config:
    """The config of Mask R-CNN with S6LA-ResNet of a depth."""
    return load_config(str(ROOT / f'configs/mask_rcnn/mask-rcnn_s6la-r{depth}_fpn_1x_coco.py'))


def measure(depth: int, shape: tuple[int, int]) -> dict:
    """Measures one image of all networks of a depth, and what checks the measurement.

    Returns:
        dict: Counts by network; under ``'checks'``, for S6LA and by count, the value ``measured`` at ``shape``, the one
            ``extrapolated`` linearly in pixels from two smaller sizes, and the ratio of ``two_images`` to one.
    """
    counts = {}
    for name in NETWORKS:
        cfg = capacity.plain_config(config_of(depth))[0] if name == 'plain' else config_of(depth)
        cfg.model.backbone.with_cp = name.endswith('with_cp')
        counts[name] = capacity.measure_training(cfg, shape, 1)
    small, large = (capacity.measure_training(config_of(depth), size, 1) for size in SMALLER)
    two = capacity.measure_training(config_of(depth), SMALLER[0], 2)
    pixels = [height * width for height, width in (*SMALLER, shape)]
    checks = {}
    for field in ('activations', 'flops'):
        a, b = getattr(small, field), getattr(large, field)
        checks[field] = dict(
            measured=getattr(counts['S6LA'], field),
            extrapolated=a + (b - a) / (pixels[1] - pixels[0]) * (pixels[2] - pixels[0]),
            two_images=getattr(two, field) / a,
        )
    return dict(shape=list(shape), checks=checks, **{name: count._asdict() for name, count in counts.items()})


def load_or_measure(args: argparse.Namespace) -> dict:
    """The measurements by depth and network: from the file if it is there.

    Raises:
        UsageError: If the file has those of another image size.
    """
    if args.measurements and args.measurements.is_file():
        found = json.loads(args.measurements.read_text())
        if any(of_depth['shape'] != list(args.shape) for of_depth in found.values()):
            raise UsageError(f'{args.measurements} was not measured at --shape {args.shape}: name another file')
        return found
    found = {str(depth): measure(depth, tuple(args.shape)) for depth in DEPTHS}
    if args.measurements:
        args.measurements.write_text(json.dumps(found, indent=1))
    return found


def of_batch(one: dict, batch: int) -> Measured:
    """The counts of a batch from those of one image: activations and FLOPs grow with it, nothing else does."""
    m = Measured(**one)
    return m._replace(activations=batch * m.activations, flops=batch * m.flops)


def measured_table(found: dict, batch: int) -> Iterator[str]:
    """Counts of every network, and S6LA's share."""
    yield '| | parameters | gradients | optimizer | activations | GFLOPs forward + backward |'
    yield '|---|---:|---:|---:|---:|---:|'
    for depth, networks in found.items():
        counts = {name: of_batch(networks[name], batch) for name in NETWORKS}
        for name, m in counts.items():
            cells = [f'{size / MB:.1f} MB' for size in (m.parameters, m.gradients, m.optimizer)]
            cells += [f'{m.activations / GIB:.2f} GiB', f'{m.flops / 1e9:.0f}']
            yield f'| R{depth} {name} | {" | ".join(cells)} |'
        plain, s6la = counts['plain'], counts['S6LA']
        fields = ('parameters', 'gradients', 'optimizer', 'activations', 'flops')
        shares = [f'+{getattr(s6la, field) / getattr(plain, field) - 1:.1%}' for field in fields]
        yield f'| R{depth}, added by S6LA | {" | ".join(shares)} |'


def checks(found: dict) -> Iterator[str]:
    """Does a batch cost what its images cost, and do pixels count linearly?"""
    for depth, networks in found.items():
        parts = []
        for field, unit, name in (('activations', GIB, 'GiB'), ('flops', 1e9, 'GFLOPs')):
            check = networks['checks'][field]
            parts.append(
                f'{check["measured"] / unit:.3f} {name} measured, {check["extrapolated"] / unit:.3f} extrapolated from '
                f'256 × 384 and 512 × 768, two images {check["two_images"]:.3f} times one'
            )
        yield f'Check of R{depth} with S6LA, one image: {"; ".join(parts)}.'


def memory_table(found: dict, args: argparse.Namespace) -> Iterator[str]:
    """Memory and traffic of a GPU."""
    kinds = 'DDP | ZeRO-2 | ZeRO-3 (FSDP) | DDP, added by S6LA'
    yield f'| depth, GPUs | {kinds} | DDP sends | FSDP sends | DDP sends, added by S6LA |'
    yield '|---|' + '---:|' * 7
    for depth, networks in found.items():
        plain, m = (of_batch(networks[name], args.batch) for name in ('plain', 'S6LA'))
        for gpus in args.gpus:
            per_gpu = [capacity.memory(m, gpus, kind) for kind in ('ddp', 'zero2', 'zero3')]
            added = per_gpu[0] - capacity.memory(plain, gpus)
            sent = capacity.all_reduce_bytes(m.gradients, gpus)
            sharded = capacity.sharded_bytes(m.parameters, m.gradients, gpus)
            sent_added = capacity.all_reduce_bytes(m.gradients - plain.gradients, gpus)
            cells = [f'{size / GIB:.2f} GiB' for size in (*per_gpu, added)]
            cells += [f'{size / MB:.1f} MB' for size in (sent, sharded, sent_added)]
            yield f'| R{depth}, {gpus} | {" | ".join(cells)} |'


def clusters(args: argparse.Namespace) -> list[Cluster]:
    """The two clusters, which differ in the bandwidth between nodes."""
    return [
        Cluster(args.gpus_per_node, args.intra * 1e9, inter * 1e9, args.latency * 1e-6, args.tflops * 1e12 / 2)
        for inter in args.inter
    ]


def efficiency(m: Measured, gpus: int, cluster: Cluster, size: float = 1.0, accumulation: int = 1) -> float:
    """Compute time over compute time and exposed communication, for DDP.

    Args:
        m (Measured): The counts of one GPU's batch.
        gpus (int): GPUs.
        cluster (Cluster): What is assumed.
        size (float): Bytes sent, relative to the gradients'. 0.5 for 16-bit gradients.
        accumulation (int): Batches between two synchronisations.
    """
    pieces = capacity.buckets(m.gradients)
    seconds = capacity.ring_time(size * m.gradients, gpus, cluster, pieces).total
    compute = m.flops / cluster.flops
    total = accumulation * compute
    return total / (total + capacity.exposed(seconds, compute, pieces, 2 / 3))


def sharded_efficiency(m: Measured, gpus: int, cluster: Cluster) -> float:
    """The same for FSDP: units of the size of DDP's buckets, gathered while others compute.

    The first gathering and the last scattering cannot be hidden: two of three pieces per unit.
    """
    pieces = capacity.buckets(m.parameters)
    gathered = capacity.ring_time(2 * m.parameters, gpus, cluster, 2 * pieces, passes=1).total
    scattered = capacity.ring_time(m.gradients, gpus, cluster, pieces, passes=1).total
    compute = m.flops / cluster.flops
    return compute / (compute + capacity.exposed(gathered + scattered, compute, 1.5 * pieces, 1.0))


def training(cfg: Config, gpus: int, args: argparse.Namespace) -> tuple[int, float, int]:
    """Global batch, learning rate by the linear rule, and iterations of the config's schedule."""
    batch = gpus * args.batch
    rate = cfg.optim_wrapper.optimizer.lr * batch / cfg.auto_scale_lr.base_batch_size
    return batch, rate, cfg.train_cfg.max_epochs * args.images // batch


def time_table(found: dict, args: argparse.Namespace) -> Iterator[str]:
    """Communication time, efficiency and what the schedule becomes."""
    fast, slow = (f'{inter:g} GB/s' for inter in args.inter)
    yield (
        f'| depth, GPUs | all-reduce, {fast} | {slow} | of it latency | added by S6LA, {slow} '
        f'| DDP efficiency, {fast} | {slow} | FSDP, {slow} | global batch | learning rate | iterations |'
    )
    yield '|---|' + '---:|' * 10
    for depth, networks in found.items():
        plain, m = (of_batch(networks[name], args.batch) for name in ('plain', 'S6LA'))
        pieces = capacity.buckets(m.gradients)
        for gpus in args.gpus:
            rings = [capacity.ring_time(m.gradients, gpus, cluster, pieces) for cluster in clusters(args)]
            added = capacity.ring_time(m.gradients - plain.gradients, gpus, clusters(args)[1]).transfer
            times = [*(ring.total for ring in rings), rings[1].latency, added]
            shares = [efficiency(m, gpus, cluster) for cluster in clusters(args)]
            shares.append(sharded_efficiency(m, gpus, clusters(args)[1]))
            batch, rate, iterations = training(config_of(int(depth)), gpus, args)
            cells = [f'{seconds * 1e3:.2f} ms' for seconds in times] + [f'{share:.3f}' for share in shares]
            yield f'| R{depth}, {gpus} | {" | ".join(cells)} | {batch} | {rate:g} | {iterations} |'


def limits(m: Measured, cfg: Config, args: argparse.Namespace) -> list[tuple[int | None, str]]:
    """What is crossed at how many GPUs, whole nodes and powers of two of them, the first one first."""
    slow = clusters(args)[1]
    pieces = capacity.buckets(m.gradients)
    warm_up = next(s.end for s in cfg.param_scheduler if s.type == 'LinearLR')
    crossed = {
        f'the global batch is more than {args.largest_batch}': lambda n: training(cfg, n, args)[0] > args.largest_batch,
        f'the warm-up of {warm_up} iterations is more than a tenth of all': lambda n: (
            training(cfg, n, args)[2] < 10 * warm_up
        ),
        'latency is more than the transfer itself': lambda n: (
            (ring := capacity.ring_time(m.gradients, n, slow, pieces)).latency > ring.transfer
        ),
        'the all-reduce does not fit behind the backward pass': lambda n: (
            capacity.ring_time(m.gradients, n, slow, pieces).total > 2 / 3 * m.flops / slow.flops
        ),
        'efficiency is below 0.9': lambda n: efficiency(m, n, slow) < 0.9,
    }
    sizes = [args.gpus_per_node * 2**i for i in range(15)]
    found = [(next((n for n in sizes if test(n)), None), name) for name, test in crossed.items()]
    return sorted(found, key=lambda item: (item[0] is None, item[0] or 0))


def limits_table(m: Measured, cfg: Config, args: argparse.Namespace) -> Iterator[str]:
    """The limits, as a table."""
    yield '| GPUs | from here on |'
    yield '|---:|---|'
    for gpus, name in limits(m, cfg, args):
        yield f'| {gpus or "more than " + str(args.gpus_per_node * 2**14)} | {name} |'


def remedies_table(m: Measured, checkpointed: Measured, args: argparse.Namespace) -> Iterator[str]:
    """What a switch changes at the largest number of GPUs."""
    gpus, slow = max(args.gpus), clusters(args)[1]
    yield f'| at {gpus} GPUs, {args.inter[1]:g} GB/s | memory per GPU | efficiency |'
    yield '|---|---:|---:|'
    ddp = capacity.memory(m, gpus)
    for name, size, share in (
        ('DDP', ddp, efficiency(m, gpus, slow)),
        ('gradients sent in bfloat16', ddp, efficiency(m, gpus, slow, size=0.5)),
        ('gradients of 4 batches accumulated', ddp, efficiency(m, gpus, slow, accumulation=4)),
        ('FSDP', capacity.memory(m, gpus, 'zero3'), sharded_efficiency(m, gpus, slow)),
        ('`with_cp` in the backbone', capacity.memory(checkpointed, gpus), efficiency(checkpointed, gpus, slow)),
    ):
        yield f'| {name} | {size / GIB:.2f} GiB | {share:.3f} |'


def make_tables(found: dict, args: argparse.Namespace) -> list[str]:
    """All tables with their headings."""
    lines = [f'### Measured: {args.batch} images of {args.shape[0]} × {args.shape[1]}, float32', '']
    lines += [*measured_table(found, args.batch), '', *checks(found)]
    lines += ['', '### Computed: Mask R-CNN with S6LA, per GPU and iteration', '']
    lines += [*memory_table(found, args), '', *time_table(found, args)]
    first = next(iter(found))
    m, checkpointed = (of_batch(found[first][name], args.batch) for name in NETWORKS[1:])
    lines += ['', f'### Computed: where R{first} with S6LA stops scaling, and what helps', '']
    lines += [*limits_table(m, config_of(int(first)), args), '', *remedies_table(m, checkpointed, args)]
    return lines


def main() -> None:
    """Measures or reads, computes, prints and writes."""
    args = parse_args()
    with clear_errors():
        if args.write:
            require_file(str(args.write), 'document')
        for gpus in args.gpus:
            capacity.ring_time(0, gpus, clusters(args)[0])
        lines = make_tables(load_or_measure(args), args)
        print('\n'.join(lines))
        if args.write:
            text = args.write.read_text(encoding='utf-8')
            args.write.write_text(replace_between(text, BEGIN, END, lines, args.write), encoding='utf-8')


if __name__ == '__main__':
    main()
