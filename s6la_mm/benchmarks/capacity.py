"""What training costs, in bytes and FLOPs, measured; and what follows from that for many GPUs, computed.

The first half measures one process on the CPU; tensors have the same sizes on every device. The second half are
formulas of memory and communication, for tools/benchmarks/capacity_plan.py, which prints them.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ..common.configs import random_batch, without_downloads
from ..common.errors import UsageError

_BUCKET_BYTES, _FIRST_BUCKET_BYTES = 25 * 2**20, 2**20  # of DistributedDataParallel, by default


class SavedBytes:
    """Counts the bytes that autograd keeps for the backward pass, each storage once; for the forward pass within it.

    Weights and buffers do not count. Neither does what a pass allocates and frees on its way.

    Args:
        model (nn.Module): The model, whose own tensors are not activations.

    Example:
        >>> x = torch.rand(10, 10, requires_grad=True)
        >>> with SavedBytes(nn.Identity()) as saved:
        ...     y = x.sin() + x.cos()
        >>> saved.bytes
        400
    """

    def __init__(self, model: nn.Module) -> None:
        self.bytes = 0
        self._now = 0
        self._users: dict[int, int] = {}
        self._own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
        self._hooks = saved_tensors_hooks(lambda tensor: _Saved(tensor, self), lambda saved: saved.tensor)

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._hooks.__exit__(*exc_info)

    def _change(self, tensor: Tensor, by: int) -> None:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address in self._own:
            return
        before = self._users.get(address, 0)
        self._users[address] = before + by
        if 0 in (before, before + by):
            self._now += by * storage.nbytes()
        self.bytes = max(self.bytes, self._now)


class _Saved:
    """A saved tensor, which takes itself off the count when autograd lets go of it."""

    def __init__(self, tensor: Tensor, count: SavedBytes) -> None:
        self.tensor, self.count = tensor.detach(), count
        count._change(self.tensor, 1)

    def __del__(self) -> None:
        self.count._change(self.tensor, -1)


class Measured(NamedTuple):
    """Bytes and FLOPs of one training step."""

    parameters: int  # bytes of all weights
    buffers: int
    gradients: int  # after the backward pass: frozen weights have none
    optimizer: int  # state after a step
    activations: int  # what autograd keeps between forward and backward
    flops: int  # multiply-adds of forward and backward
    largest_unit: int  # bytes of the largest part that FSDP gathers at once: a stage of the backbone, a head
    sync_bn_channels: int  # of all layers that synchronise their statistics


def measure_training(cfg: Config, shape: tuple[int, int], batch: int, objects: int = 128) -> Measured:
    """Measures a training step of a config's model on the CPU, with random weights and images, in float32.

    Args:
        cfg (Config): A config of mmdet or mmseg.
        shape (tuple[int, int]): Height and width of the images.
        batch (int): Images.
        objects (int): Objects in an image. Defaults to 128, the most positive RoIs that a two-stage detector samples:
            its mask head works on as many as it ever does.

    Returns:
        Measured: The counts.
    """
    cfg = copy.deepcopy(cfg)
    without_downloads(cfg.model)
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    scope = cfg.get('default_scope', 'mmengine')
    init_default_scope(scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)  # with the numbers of its constructors: their sizes are what counts
    synchronised = [m for m in model.modules() if type(m).__name__ == 'SyncBatchNorm']
    model = revert_sync_batchnorm(model)
    model.train()
    wrapper = build_optim_wrapper(model, dict(type='OptimWrapper', **_optimizer(cfg)))
    data = model.data_preprocessor(random_batch(scope, model, batch, shape, objects), True)
    with FlopCounterMode(display=False) as flops:
        with SavedBytes(model) as saved:
            loss, _ = model.parse_losses(model(**data, mode='loss'))
        loss.backward()
    wrapper.optimizer.step()
    state = [value for values in wrapper.optimizer.state.values() for value in values.values()]
    return Measured(
        parameters=_bytes(model.parameters()),
        buffers=_bytes(model.buffers()),
        gradients=_bytes(p.grad for p in model.parameters() if p.grad is not None),
        optimizer=_bytes(value for value in state if isinstance(value, Tensor)),
        activations=saved.bytes,
        flops=flops.get_total_flops() // 2,
        largest_unit=max(
            _bytes(unit.parameters()) for part in model.children() for unit in (list(part.children()) or [part])
        ),
        sync_bn_channels=sum(m.num_features for m in synchronised),
    )


def _optimizer(cfg: Config) -> dict:
    return {
        key: cfg.optim_wrapper[key] for key in ('optimizer', 'paramwise_cfg', 'constructor') if key in cfg.optim_wrapper
    }


def _bytes(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class Cluster(NamedTuple):
    """What is assumed of the machines. Nothing of it is measured.

    Attributes:
        gpus_per_node (int): GPUs that share a node.
        intra (float): Bytes per second that a GPU sends to others of its node.
        inter (float): Bytes per second that a GPU sends to other nodes.
        latency (float): Seconds of one step of a ring.
        flops (float): Multiply-adds per second that a GPU sustains in training.
    """

    gpus_per_node: int = 8
    intra: float = 400e9
    inter: float = 50e9
    latency: float = 5e-6
    flops: float = 20e12


def all_reduce_bytes(size: float, gpus: int) -> float:
    """Bytes that every GPU sends in a ring all-reduce: 2 (N - 1) / N of the size.

    Example:
        >>> all_reduce_bytes(100, 4)
        150.0
    """
    return 2 * (gpus - 1) / gpus * size


def sharded_bytes(parameters: float, gradients: float, gpus: int) -> float:
    """Bytes that every GPU sends under FSDP (ZeRO-3): weights gathered twice, gradients reduced and scattered once.

    (N - 1) / N of each: 3 (N - 1) / N of the weights if all of them are trained.

    Example:
        >>> sharded_bytes(100, 100, 4)
        225.0
    """
    return (gpus - 1) / gpus * (2 * parameters + gradients)


def sync_bn_bytes(channels: int, gpus: int) -> float:
    """Bytes that every GPU sends for SyncBN: mean, inverse deviation and count gathered, two sums reduced, in float32.

    A layer's count is one number, and left out.
    """
    return 4 * ((gpus - 1) * 2 * channels + all_reduce_bytes(2 * channels, gpus))


def buckets(gradients: float) -> int:
    """Buckets of DistributedDataParallel: one of 1 MiB, the others of 25 MiB.

    Example:
        >>> buckets(2**20), buckets(26 * 2**20), buckets(100 * 2**20)
        (1, 2, 5)
    """
    return 1 + max(0, math.ceil((gradients - _FIRST_BUCKET_BYTES) / _BUCKET_BYTES))


class RingTime(NamedTuple):
    """Seconds of an all-reduce, by what they are spent on."""

    transfer: float
    latency: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.transfer + self.latency


def ring_time(size: float, gpus: int, cluster: Cluster, calls: int = 1, passes: float = 2.0) -> RingTime:
    """Seconds of a hierarchical ring all-reduce.

    Reduced and scattered inside every node of g GPUs, all-reduced by rings of one GPU of each of M nodes, which carry a
    g-th part each, and gathered inside the nodes.

    Args:
        size (float): Bytes in all.
        gpus (int): GPUs; up to ``gpus_per_node``, or a multiple of it.
        cluster (Cluster): Bandwidths and latency.
        calls (int): Calls, or buckets, that the bytes come in: each has the latency of all steps.
        passes (float): 2 for an all-reduce, which is a reduce-scatter and an all-gather; 1 for one of those.

    Example:
        >>> round(ring_time(8e9, 16, Cluster(8, intra=70e9, inter=10e9, latency=0)).total, 6)
        0.3
    """
    inside = min(gpus, cluster.gpus_per_node)
    nodes = gpus / inside
    if nodes != int(nodes):
        raise UsageError(f'{gpus} GPUs do not fill nodes of {inside}: use a multiple of {inside}')
    transfer = passes * (
        (inside - 1) / inside * size / cluster.intra + (nodes - 1) / nodes * size / inside / cluster.inter
    )
    return RingTime(transfer, calls * passes * (inside - 1 + nodes - 1) * cluster.latency)


def exposed(communication: float, compute: float, pieces: float, share: float) -> float:
    """Seconds of communication that computation does not hide.

    Args:
        communication (float): Seconds of communication.
        compute (float): Seconds of computation.
        pieces (int): Equal pieces that it comes in. The last one can never be hidden: it starts when all is computed.
        share (float): Share of the computation that may hide it: 2/3 for DDP (the backward pass), 1 for FSDP.

    Example:
        >>> exposed(0.2, 0.9, 10, 2 / 3), exposed(1.0, 0.9, 10, 2 / 3)
        (0.02, 0.4)
    """
    return max(communication / pieces, communication - share * compute)


def memory(measured: Measured, gpus: int, sharding: str = 'ddp') -> float:
    """Bytes per GPU: weights, buffers, gradients, optimizer state, activations and buckets.

    Args:
        measured (Measured): The counts of one GPU's batch.
        gpus (int): GPUs.
        sharding (str): ``'ddp'``: all on every GPU, and a copy of the gradients in buckets, if there are several;
            ``'zero2'``: gradients and optimizer state divided, and one bucket; ``'zero3'`` (FSDP): weights too, and
            room for two gathered units.
    """
    m = measured
    fixed = m.buffers + m.activations
    if sharding == 'ddp':
        return fixed + m.parameters + m.gradients * (1 if gpus == 1 else 2) + m.optimizer
    if sharding == 'zero2':
        bucket = min(m.gradients, _BUCKET_BYTES) if gpus > 1 else 0
        return fixed + m.parameters + (m.gradients + m.optimizer) / gpus + bucket
    if sharding == 'zero3':
        gathered = 2 * m.largest_unit if gpus > 1 else 0
        return fixed + (m.parameters + m.gradients + m.optimizer) / gpus + gathered
    raise ValueError(f"sharding={sharding!r}: must be 'ddp', 'zero2' or 'zero3'")
