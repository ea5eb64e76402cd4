"""What training costs, in bytes and FLOPs, measured; and what follows from that for many GPUs, computed.

The first half measures one process on the CPU; tensors have the same sizes on every device. The second half are
formulas of memory and communication, for tools/capacity_plan.py, which prints them.
"""

from __future__ import annotations

import copy
import inspect
import math
from typing import NamedTuple

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from . import UsageError

# Options of S6LA alone; what the plain network does not know besides is named to the user.
_STATE_OPTIONS = {'state_dim', 'discretization', 'input_norm', 'carry', 'stage_with_state', 'out_state'}
_BUCKET_BYTES, _FIRST_BUCKET_BYTES = 25 * 2**20, 2**20  # of DistributedDataParallel, by default


def is_s6la(cfg: Config) -> bool:
    """Whether the config's backbone is one of S6LA's."""
    return cfg.model.get('backbone', {}).get('type', '').rpartition('.')[2].startswith('S6LA')


def plain_config(cfg: Config) -> tuple[Config, list[str]]:
    """The config with the network that its S6LA backbone stands on.

    Args:
        cfg (Config): A config; it stays as it is.

    Returns:
        tuple[Config, list[str]]: The other config, and the options besides those of the state that it had to leave out
            because the plain network has none such (windows of a vision transformer).

    Raises:
        UsageError: If the backbone is not one of S6LA's.

    Example:
        >>> cfg = Config(dict(model=dict(backbone=dict(type='S6LAResNet', depth=50, state_dim=8))))
        >>> plain_config(cfg)[0].model.backbone
        {'depth': 50, 'type': 'mmdet.ResNet'}
    """
    if not is_s6la(cfg):
        kind = cfg.model.get('backbone', {}).get('type')
        raise UsageError(f'the backbone {kind!r} is no S6LA backbone, so there is no plain network to compare it with')
    from ..backbones.architectures import architectures

    options = copy.deepcopy(cfg.model.backbone.to_dict())
    name = options.pop('type').rpartition('.')[2]
    rows = [row for row in architectures().values() if row.s6la.__name__ == name]
    s6la, plain = rows[0].s6la, rows[0].plain
    if options.get('groups', 1) > 1:
        plain = next(row.plain for row in rows if 'groups' in row.options)
    elif name == 'S6LAResNet' and cfg.get('default_scope') == 'mmseg':
        plain = MODELS.get('mmseg.ResNet')  # which knows multi_grid and contract_dilation
    if hasattr(s6la, 'arch_zoo') and isinstance(options.get('arch'), str) and 'arch' not in _known(plain):
        options = {**s6la.arch_zoo[options.pop('arch')], **options}
    unknown = options.keys() & (inspect.signature(s6la.__init__).parameters.keys() - _known(plain))
    kept = {key: value for key, value in options.items() if key not in unknown}
    result = copy.deepcopy(cfg)
    kept['type'] = f'{plain.__module__.partition(".")[0]}.{plain.__name__}'
    result.model.backbone = ConfigDict(kept)
    return result, sorted(unknown - _STATE_OPTIONS)


def _known(cls: type) -> set[str]:
    """The options of a class and its bases."""
    return {name for base in cls.__mro__ if '__init__' in vars(base) for name in inspect.signature(base).parameters}


def without_downloads(node: object) -> None:
    """Removes from a model's config, in place, all that loads weights."""
    if isinstance(node, dict):
        if isinstance(node.get('init_cfg'), dict) and 'checkpoint' in node['init_cfg']:
            node['init_cfg'] = None
        node.pop('pretrained', None)
    if isinstance(node, (dict, list, tuple)):
        for value in node.values() if isinstance(node, dict) else node:
            without_downloads(value)


def random_batch(scope: str, model: nn.Module, batch: int, shape: tuple[int, int], objects: int = 7) -> dict:
    """Random images with annotations: what the data preprocessor of a model takes.

    Args:
        scope (str): ``'mmdet'`` or ``'mmseg'``; others raise a UsageError, as do detectors without a ``bbox_head``.
        model (nn.Module): The model, wrapped or not, whose classes and masks are asked for.
        batch (int): Images.
        shape (tuple[int, int]): Height and width.
        objects (int): Objects in an image of a detector. Defaults to 7, about COCO's mean.
    """
    model = model.module if is_model_wrapper(model) else model
    height, width = shape
    if scope == 'mmdet':
        return _random_detections(model, batch, height, width, objects)
    if scope == 'mmseg':
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        meta = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), shape)
        labels = [torch.randint(0, model.num_classes, (1, height, width)) for _ in range(batch)]
        data_samples = [SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=label)) for label in labels]
        images = [torch.randint(0, 256, (3, height, width), dtype=torch.uint8) for _ in range(batch)]
        return dict(inputs=images, data_samples=data_samples)
    raise UsageError(f'random images are made for mmdet and mmseg, not for default_scope={scope!r}')


def _random_detections(model: nn.Module, batch: int, height: int, width: int, objects: int) -> dict:
    from mmdet.structures.mask import BitmapMasks
    from mmdet.testing import demo_mm_inputs

    head = getattr(model, 'bbox_head', None) or getattr(getattr(model, 'roi_head', None), 'bbox_head', None)
    if head is None:
        raise UsageError(f'random images are made for detectors with a bbox_head, which {type(model).__name__} has not')
    head = head[0] if isinstance(head, nn.ModuleList) else head
    with_mask = hasattr(model, 'roi_head') and model.roi_head.with_mask
    drawn = min(objects, 8)  # masks are slow to draw: more objects are the same ones again
    result = demo_mm_inputs(
        batch,
        image_shapes=[(3, height, width)] * batch,
        num_items=[drawn] * batch,
        num_classes=head.num_classes,
        with_mask=with_mask,
    )
    again = torch.arange(objects) % drawn
    for sample in result['data_samples']:
        instances = sample.gt_instances
        values = dict(bboxes=instances.bboxes[again], labels=instances.labels[again])
        if with_mask:
            values['masks'] = BitmapMasks(instances.masks.masks.astype('uint8')[again.numpy()], height, width)
        sample.gt_instances = type(instances)(**values)
    return result


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
