"""s6la_mm/benchmarks/capacity.py: formulas against numbers by hand, and counts against sums over parameters."""

from __future__ import annotations

import doctest

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from tool_runner import ROOT
from torch import nn
from torch.utils.checkpoint import checkpoint

from s6la_mm.benchmarks import capacity
from s6la_mm.benchmarks.capacity import Cluster, Measured, SavedBytes
from s6la_mm.common.errors import UsageError

MIB = 2**20


def test_examples():
    results = doctest.testmod(capacity)
    assert results.attempted > 5 and results.failed == 0


@pytest.mark.parametrize('gpus, expected', [(1, 0), (2, 100), (8, 175), (1024, 199.8046875)])
def test_ring_all_reduce(gpus, expected):
    assert capacity.all_reduce_bytes(100, gpus) == expected
    assert capacity.sharded_bytes(100, 100, gpus) == pytest.approx(1.5 * expected)  # 3 (N - 1) / N of the weights


def test_sharding_sends_no_gradients_of_frozen_weights():
    assert capacity.sharded_bytes(100, 60, 4) == 0.75 * 260


def test_sync_bn():
    """Two numbers per channel from each of the others, and two that are reduced."""
    assert capacity.sync_bn_bytes(64, 1) == 0
    assert capacity.sync_bn_bytes(64, 4) == 4 * (3 * 128 + 2 * 3 / 4 * 128)


def test_hierarchical_ring():
    cluster = Cluster(gpus_per_node=8, intra=100e9, inter=10e9, latency=1e-6, flops=1.0)
    inside = capacity.ring_time(800e6, 8, cluster)
    assert inside.transfer == pytest.approx(2 * 7 * 100e6 / 100e9) and inside.latency == pytest.approx(14e-6)
    both = capacity.ring_time(800e6, 32, cluster, calls=3)  # 4 nodes; each GPU sends an eighth between them
    assert both.transfer == pytest.approx(inside.transfer + 2 * 3 * 25e6 / 10e9)
    assert both.latency == pytest.approx(3 * 2 * (7 + 3) * 1e-6)
    assert capacity.ring_time(800e6, 32, cluster, passes=1).transfer == pytest.approx(both.transfer / 2)
    assert capacity.ring_time(800e6, 1, cluster).total == 0
    with pytest.raises(UsageError, match='12 GPUs do not fill nodes of 8: use a multiple of 8'):
        capacity.ring_time(1.0, 12, cluster)


def test_memory_per_gpu():
    m = Measured(
        parameters=100 * MIB,
        buffers=1 * MIB,
        gradients=80 * MIB,
        optimizer=160 * MIB,
        activations=1000 * MIB,
        flops=0,
        largest_unit=30 * MIB,
        sync_bn_channels=0,
    )
    assert capacity.memory(m, 1) == (1001 + 100 + 80 + 160) * MIB
    assert capacity.memory(m, 8) == (1001 + 100 + 2 * 80 + 160) * MIB
    assert capacity.memory(m, 8, 'zero2') == (1001 + 100 + 30 + 25) * MIB
    assert capacity.memory(m, 8, 'zero3') == (1001 + 42.5 + 60) * MIB
    assert capacity.memory(m, 1, 'zero2') == capacity.memory(m, 1, 'zero3') == capacity.memory(m, 1)
    with pytest.raises(ValueError, match="sharding='zero1': must be"):
        capacity.memory(m, 8, 'zero1')


def test_storages_count_once_and_only_while_they_are_kept():
    model = nn.Linear(8, 8)
    x = torch.rand(4, 8, requires_grad=True)
    with SavedBytes(model) as saved:
        y = model(x)  # keeps x and the weight, which is no activation
        z = y.relu() * y  # keeps relu's result, for both relu and the product, and y
    assert saved.bytes == 3 * 4 * 8 * 4
    z.sum().backward()
    assert x.grad is not None and saved._now == 0
    with SavedBytes(model) as saved:
        for _ in range(3):
            x.exp()  # dropped at once
    assert saved.bytes == 4 * 8 * 4


def test_checkpointing_keeps_the_input_only():
    block = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
    x = torch.rand(4, 8, requires_grad=True)
    with SavedBytes(block) as saved:
        out = checkpoint(block, x, use_reentrant=False)
    assert saved.bytes == 4 * 8 * 4
    out.sum().backward()


QUICKSTART = ROOT / 'configs/quickstart/retinanet_s6la-r18_shapes.py'


def test_measured_bytes_are_those_of_the_parameters():
    cfg = Config.fromfile(QUICKSTART)
    cfg.model.backbone.frozen_stages = 1
    one = capacity.measure_training(cfg, (160, 160), 1, objects=3)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    assert one.parameters == sum(4 * p.numel() for p in model.parameters())
    trained = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    assert one.gradients == trained < one.parameters
    steps = 4 * sum(p.requires_grad for p in model.parameters())  # AdamW: two moments, and the number of steps
    assert one.optimizer == 2 * trained + steps
    parts = [*model.backbone.children(), *model.neck.children(), *model.bbox_head.children()]
    assert one.largest_unit == max(sum(4 * p.numel() for p in part.parameters()) for part in parts)
    two = capacity.measure_training(cfg, (160, 160), 2, objects=3)
    assert two.parameters == one.parameters and two.flops == 2 * one.flops
    assert two.activations == pytest.approx(2 * one.activations, rel=0.02)
