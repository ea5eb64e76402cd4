"""Capacity plan: memory, communication and efficiency of training Mask R-CNN on 1 to 1024 GPUs.

Bytes and FLOPs of an image are measured on the CPU, where tensors are as large as on every device. Bandwidths, latency
and the speed of a GPU are assumptions, given as options. docs/capacity.md has the formulas in words; ``--write`` puts
the tables between its marks.
"""

from __future__ import annotations

import json
import math
import weakref
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import s6la_mm  # noqa: F401  (registers the backbones)
from s6la_mm.common.cli import clear_errors, load_config, require_file
from s6la_mm.common.configs import enter_scope, package_of, plain_config, random_batch, without_downloads
from s6la_mm.common.errors import UsageError
from s6la_mm.common.files import replace_between
from s6la_mm.common.model_configs import input_channels
from s6la_mm.config_types import type_name

ROOT = Path(__file__).parents[2]
BEGIN, END = '<!-- tables of tools/benchmarks/capacity_plan.py -->', '<!-- end of the tables -->'
DEPTHS = ('50', '101')
MB, MIB, GIB = 1e6, 2**20, 2**30
BUCKET = 25 * MIB  # of DistributedDataParallel, whose first one has 1 MiB


def parse_args() -> Namespace:
    """Parses the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('--measurements', type=Path, help='file of measurements: read, or written if it is not there')
    parser.add_argument('--write', type=Path, metavar='DOCUMENT', help='put the tables between its marks')
    parser.add_argument('--gpus', type=int, nargs='+', default=[1, 8, 64, 256, 1024])
    parser.add_argument('--batch', type=int, default=2, help='images per GPU')
    parser.add_argument('--shape', type=int, nargs=2, default=[800, 1344], metavar=('H', 'W'))
    parser.add_argument('--tflops', type=float, default=40.0, help='sustained by a GPU; a multiply-add is two')
    parser.add_argument('--gpus-per-node', type=int, default=8)
    parser.add_argument('--intra', type=float, default=400.0, help='GB/s that a GPU sends inside a node')
    parser.add_argument('--inter', type=float, nargs=2, default=[50.0, 25.0], help='GB/s that it sends to other nodes')
    parser.add_argument('--latency', type=float, default=5.0, help='microseconds of a step of the ring')
    parser.add_argument('--images', type=int, default=117266, help='of an epoch; default: COCO train2017, as filtered')
    parser.add_argument('--largest-batch', type=int, default=256, help='for which the linear rule is trusted')
    args = parser.parse_args()
    numbers = [*args.gpus, args.batch, *args.shape, args.gpus_per_node, args.images, args.largest_batch]
    if min([*numbers, args.tflops, args.intra, *args.inter]) <= 0 or args.latency < 0:
        parser.error('all options must be positive')
    for gpus in args.gpus:
        if gpus % min(gpus, args.gpus_per_node):
            parser.error(f'{gpus} GPUs do not fill nodes of {args.gpus_per_node}: use a multiple of that')
    return args


class Costs(NamedTuple):
    """What a training step of one GPU costs: bytes, and multiply-adds of forward and backward."""

    parameters: int
    buffers: int
    gradients: int  # frozen weights have none
    optimizer: int  # its state after a step
    activations: int  # what autograd keeps between forward and backward
    flops: int
    largest_unit: int  # the largest part that FSDP gathers at once: a stage of the backbone, a head


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def weigh_forward(model: nn.Module, forward: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """The result of a forward pass, and the bytes of the storages kept for its backward pass, without its own."""
    kept: list[weakref.ref] = []

    def pack(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        kept.append(weakref.ref(tensor))
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    alive = [tensor.untyped_storage() for tensor in (ref() for ref in kept) if tensor is not None]
    own = {tensor.untyped_storage().data_ptr() for tensor in chain(model.parameters(), model.buffers())}
    return result, sum({s.data_ptr(): s.nbytes() for s in alive if s.data_ptr() not in own}.values())


def measure_step(cfg: Config, shape: tuple[int, int], images: int = 1, objects: int = 128) -> Costs:
    """Measures a training step in float32; 128 objects give the mask head as many RoIs as the detector ever samples."""
    without_downloads(cfg.model)
    enter_scope(cfg)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)  # with the numbers of its constructors: their sizes are what counts
    model.train()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    batch = random_batch(package_of(cfg), model, images, shape, objects, input_channels(cfg.model))
    data = model.data_preprocessor(batch, True)
    with FlopCounterMode(display=False) as counter:
        loss, activations = weigh_forward(model, lambda: model.parse_losses(model(**data, mode='loss'))[0])
        loss.backward()
    optimizer.step()
    units = chain.from_iterable(list(part.children()) or [part] for part in model.children())
    return Costs(
        parameters=size_of(model.parameters()),
        buffers=size_of(model.buffers()),
        gradients=size_of(p.grad for p in model.parameters() if p.grad is not None),
        optimizer=size_of(v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)),
        activations=activations,
        flops=counter.get_total_flops() // 2,
        largest_unit=max(size_of(unit.parameters()) for unit in units),
    )


def config_of(depth: str) -> Config:
    """The config of Mask R-CNN with S6LA-ResNet of a depth."""
    return load_config(str(ROOT / f'configs/mask_rcnn/mask-rcnn_s6la-r{depth}_fpn_1x_coco.py'))


def measure(depth: str, shape: tuple[int, int]) -> dict[str, Costs]:
    """Costs of one image by network."""
    s6la, with_cp = config_of(depth), config_of(depth)
    with_cp.model.backbone.with_cp = True
    networks = {'plain': plain_config(s6la)[0], 'S6LA': s6la, 'S6LA, with_cp': with_cp}
    return {name: measure_step(cfg, shape) for name, cfg in networks.items()}


def buckets(size: float) -> int:
    """Pieces that DistributedDataParallel sends gradients in."""
    return 1 + max(0, math.ceil((size - MIB) / BUCKET))


def ring_seconds(
    size: float, gpus: int, args: Namespace, inter: float, calls: int = 1, passes: int = 2
) -> tuple[float, float]:
    """Transfer and latency of a hierarchical ring all-reduce; with ``passes=1`` of a gathering or scattering alone.

    Reduced and scattered inside every node, all-reduced by rings of one GPU of each node, which carry a part each, and
    gathered inside the nodes. Each of the calls that the bytes come in has the latency of all steps.
    """
    inside = min(gpus, args.gpus_per_node)
    nodes = gpus // inside
    seconds = (inside - 1) / inside * size / (args.intra * 1e9) + (nodes - 1) / nodes * size / inside / (inter * 1e9)
    return passes * seconds, calls * passes * (inside - 1 + nodes - 1) * args.latency * 1e-6


def memory_per_gpu(c: Costs, gpus: int) -> dict[str, float]:
    """Bytes by what is divided among the GPUs. Several have copies: buckets of gradients, two gathered units."""
    several, fixed = gpus > 1, c.buffers + c.activations
    return {
        'DDP': fixed + c.parameters + c.gradients * (1 + several) + c.optimizer,
        'ZeRO-2': fixed + c.parameters + (c.gradients + c.optimizer) / gpus + several * min(c.gradients, BUCKET),
        'ZeRO-3 (FSDP)': fixed + (c.parameters + c.gradients + c.optimizer) / gpus + several * 2 * c.largest_unit,
    }


def efficiency(c: Costs, gpus: int, args: Namespace, inter: float, sent: float = 1.0, accumulated: int = 1) -> float:
    """Share of the time that a GPU computes under DDP, whose backward pass hides all buckets but the last.

    ``sent`` is a factor of the gradients' bytes; they are sent after ``accumulated`` batches.
    """
    pieces, compute = buckets(c.gradients), 2 * c.flops / (args.tflops * 1e12)
    seconds = sum(ring_seconds(sent * c.gradients, gpus, args, inter, pieces))
    exposed = max(seconds / pieces, seconds - 2 / 3 * compute)
    return accumulated * compute / (accumulated * compute + exposed)


def sharded_efficiency(c: Costs, gpus: int, args: Namespace, inter: float) -> float:
    """The same for FSDP with units as large as buckets: not hidden: the first gathering, the last scattering."""
    units, compute = buckets(c.parameters), 2 * c.flops / (args.tflops * 1e12)
    seconds = sum(ring_seconds(2 * c.parameters, gpus, args, inter, 2 * units, passes=1))
    seconds += sum(ring_seconds(c.gradients, gpus, args, inter, units, passes=1))
    return compute / (compute + max(seconds / (1.5 * units), seconds - compute))


def table(titles: str, rows: Iterable[Iterable[object]], rule: str = '') -> list[str]:
    """A table in Markdown; all columns but the first are aligned to the right."""
    rule = rule or '|---|' + '---:|' * titles.count('|')
    return [f'| {titles} |', rule, *(f'| {" | ".join(map(str, row))} |' for row in rows), '']


def measured_table(costs: dict[str, dict[str, Costs]]) -> list[str]:
    """Costs of a batch, and S6LA's share in them."""
    rows = []
    for depth, networks in costs.items():
        for name, c in networks.items():
            sizes = [f'{size / MB:.1f} MB' for size in (c.parameters, c.gradients, c.optimizer)]
            rows.append([f'R{depth} {name}', *sizes, f'{c.activations / GIB:.2f} GiB', f'{c.flops / 1e9:.0f}'])
        keys = ('parameters', 'gradients', 'optimizer', 'activations', 'flops')
        shares = (getattr(networks['S6LA'], key) / getattr(networks['plain'], key) - 1 for key in keys)
        rows.append([f'R{depth}, added by S6LA', *(f'+{share:.1%}' for share in shares)])
    return table('| parameters | gradients | optimizer | activations | GFLOPs forward + backward', rows)


def plan_tables(costs: dict[str, dict[str, Costs]], args: Namespace) -> list[str]:
    """Memory and traffic of a GPU; time of communication, efficiency and what the schedule becomes."""
    (fast, slow), memory, times = args.inter, [], []
    for depth, networks in costs.items():
        cfg, c, plain = config_of(depth), networks['S6LA'], networks['plain']
        for n in args.gpus:
            kinds, share, more = memory_per_gpu(c, n), (n - 1) / n, c.gradients - plain.gradients
            sizes = [*kinds.values(), kinds['DDP'] - memory_per_gpu(plain, n)['DDP']]
            sent = 2 * share * c.gradients, share * (2 * c.parameters + c.gradients), 2 * share * more
            cells = [f'{size / GIB:.2f} GiB' for size in sizes] + [f'{size / MB:.1f} MB' for size in sent]
            memory.append([f'R{depth}, {n}', *cells])
            rings = [ring_seconds(c.gradients, n, args, inter, buckets(c.gradients)) for inter in (fast, slow)]
            seconds = sum(rings[0]), sum(rings[1]), rings[1][1], ring_seconds(more, n, args, slow)[0]
            shares = efficiency(c, n, args, fast), efficiency(c, n, args, slow), sharded_efficiency(c, n, args, slow)
            cells = [f'{second * 1e3:.2f} ms' for second in seconds] + [f'{value:.3f}' for value in shares]
            rate = cfg.optim_wrapper.optimizer.lr * n * args.batch / cfg.auto_scale_lr.base_batch_size
            iterations = cfg.train_cfg.max_epochs * args.images // (n * args.batch)
            times.append([f'R{depth}, {n}', *cells, n * args.batch, f'{rate:g}', iterations])
    sizes = ' | '.join([*kinds, 'DDP, added by S6LA', 'DDP sends', 'FSDP sends', 'DDP sends, added by S6LA'])
    fast, slow = f'{fast:g} GB/s', f'{slow:g} GB/s'
    titles = f'all-reduce, {fast} | {slow} | of it latency | added by S6LA, {slow} | DDP efficiency, {fast} | {slow} '
    titles += f'| FSDP, {slow} | global batch | learning rate | iterations'
    return table(f'depth, GPUs | {sizes}', memory) + table(f'depth, GPUs | {titles}', times)


def limit_tables(depth: str, c: Costs, with_cp: Costs, args: Namespace) -> list[str]:
    """From how many GPUs on, in whole nodes, what is crossed; and what a switch changes at the most GPUs."""
    cfg, slow, most, first = config_of(depth), args.inter[1], max(args.gpus), {}
    warm_up = next(scheduler.end for scheduler in cfg.param_scheduler if type_name(scheduler) == 'LinearLR')
    hidden = 2 / 3 * 2 * c.flops / (args.tflops * 1e12)
    for n in (args.gpus_per_node * 2**i for i in range(15)):
        transfer, latency = ring_seconds(c.gradients, n, args, slow, buckets(c.gradients))
        iterations = cfg.train_cfg.max_epochs * args.images // (n * args.batch)
        limits = {
            f'the global batch is more than {args.largest_batch}': n * args.batch > args.largest_batch,
            f'the warm-up of {warm_up} iterations is more than a tenth of all': iterations < 10 * warm_up,
            'latency is more than the transfer itself': latency > transfer,
            'the all-reduce does not fit behind the backward pass': transfer + latency > hidden,
            'efficiency is below 0.9': efficiency(c, n, args, slow) < 0.9,
        }
        for text in (text for text, is_crossed in limits.items() if is_crossed):
            first.setdefault(text, n)
    ddp = memory_per_gpu(c, most)['DDP']
    remedies = {
        'DDP': (ddp, efficiency(c, most, args, slow)),
        'gradients sent in bfloat16': (ddp, efficiency(c, most, args, slow, sent=0.5)),
        'gradients of 4 batches accumulated': (ddp, efficiency(c, most, args, slow, accumulated=4)),
        'FSDP': (memory_per_gpu(c, most)['ZeRO-3 (FSDP)'], sharded_efficiency(c, most, args, slow)),
        '`with_cp` in the backbone': (memory_per_gpu(with_cp, most)['DDP'], efficiency(with_cp, most, args, slow)),
    }
    rows = [(name, f'{size / GIB:.2f} GiB', f'{share:.3f}') for name, (size, share) in remedies.items()]
    titles = f'at {most} GPUs, {slow:g} GB/s | memory per GPU | efficiency'
    limits = [(n, text) for text, n in first.items()]
    return table('GPUs | from here on', limits, '|---:|---|') + table(titles, rows)[:-1]


def load_or_measure(args: Namespace) -> dict[str, dict[str, Costs]]:
    """Costs of a batch by depth and network, from those of one image: in the file if it is there."""
    if args.measurements and args.measurements.is_file():
        found = json.loads(args.measurements.read_text())
        if found['shape'] != args.shape:
            raise UsageError(f'{args.measurements} was not measured at --shape {args.shape}: name another file')
    else:
        found = dict(shape=args.shape, costs={depth: measure(depth, tuple(args.shape)) for depth in DEPTHS})
        if args.measurements:
            args.measurements.write_text(json.dumps(found, indent=1))

    costs = {depth: {name: Costs(*c) for name, c in networks.items()} for depth, networks in found['costs'].items()}
    for networks in costs.values():
        for name, c in networks.items():
            networks[name] = c._replace(activations=args.batch * c.activations, flops=args.batch * c.flops)
    return costs


def main() -> None:
    """Measures or reads, computes, prints and writes."""
    args = parse_args()
    with clear_errors():
        if args.write:
            require_file(str(args.write), 'document')
        costs = load_or_measure(args)
        depth, networks = next(iter(costs.items()))
        lines = [
            *(f'### Measured: {args.batch} images of {args.shape[0]} × {args.shape[1]}, float32', ''),
            *measured_table(costs),
            *('### Computed: Mask R-CNN with S6LA, per GPU and iteration', ''),
            *plan_tables(costs, args),
            *(f'### Computed: where R{depth} with S6LA stops scaling, and what helps', ''),
            *limit_tables(depth, networks['S6LA'], networks['S6LA, with_cp'], args),
        ]
        print('\n'.join(lines))
        if args.write:
            text = args.write.read_text(encoding='utf-8')
            args.write.write_text(replace_between(text, BEGIN, END, lines, args.write), encoding='utf-8')


if __name__ == '__main__':
    main()
