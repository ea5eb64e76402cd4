"""tools/benchmarks/capacity_plan.py: formulas against numbers by hand, counts against sums, and the tables."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from tool_runner import ROOT, call, check, load
from torch import nn
from torch.utils.checkpoint import checkpoint

TOOL = 'benchmarks/capacity_plan.py'
MIB = 2**20
plan = load(TOOL)


def costs(size: float, **others: float):
    """Made-up costs of a network, in units of bytes."""
    return plan.Costs(size, 0, size, size, 10 * size, 0, 0)._replace(**others)


def test_buckets():
    assert [plan.buckets(size * MIB) for size in (0.5, 1, 26, 100)] == [1, 1, 2, 5]


def test_hierarchical_ring():
    cluster = Namespace(gpus_per_node=8, intra=100.0, latency=1.0)  # GB/s and microseconds
    transfer, latency = plan.ring_seconds(800e6, 8, cluster, 10.0)
    assert transfer == pytest.approx(2 * 7 * 100e6 / 100e9) and latency == pytest.approx(14e-6)
    both = plan.ring_seconds(800e6, 32, cluster, 10.0, calls=3)  # 4 nodes; each GPU sends an eighth between them
    assert both == pytest.approx((transfer + 2 * 3 * 25e6 / 10e9, 3 * 2 * (7 + 3) * 1e-6))
    assert plan.ring_seconds(800e6, 32, cluster, 10.0, passes=1)[0] == pytest.approx(both[0] / 2)
    assert plan.ring_seconds(800e6, 1, cluster, 10.0) == (0, 0)


def test_memory_per_gpu():
    c = plan.Costs(
        parameters=100 * MIB,
        buffers=1 * MIB,
        gradients=80 * MIB,
        optimizer=160 * MIB,
        activations=1000 * MIB,
        flops=0,
        largest_unit=30 * MIB,
    )
    assert list(plan.memory_per_gpu(c, 1).values()) == [(1001 + 100 + 80 + 160) * MIB] * 3
    assert plan.memory_per_gpu(c, 8) == {
        'DDP': (1001 + 100 + 2 * 80 + 160) * MIB,
        'ZeRO-2': (1001 + 100 + 30 + 25) * MIB,
        'ZeRO-3 (FSDP)': (1001 + 42.5 + 60) * MIB,
    }


def test_efficiency():
    cluster = Namespace(gpus_per_node=8, intra=1.0, latency=0.0, tflops=32.0)
    c = costs(100e6, flops=1600e9)  # 0.1 s to compute
    hidden = 2 / 3 * 0.1
    sent = 2 * 7 / 8 * 0.1  # 175 MB at 1 GB/s, more than the backward pass hides
    assert plan.efficiency(c, 8, cluster, 1.0) == pytest.approx(0.1 / (0.1 + sent - hidden))
    assert plan.efficiency(c, 8, cluster, 1.0, sent=0.5) == pytest.approx(0.1 / (0.1 + sent / 2 - hidden))
    assert plan.efficiency(c, 8, cluster, 1.0, accumulated=4) == pytest.approx(0.4 / (0.4 + sent - hidden))
    assert plan.efficiency(c, 1, cluster, 1.0) == 1
    # Under FSDP half as much again, behind all of the computation; of a little communication, 2 of 3 pieces of a unit.
    assert plan.sharded_efficiency(c, 8, cluster, 1.0) == pytest.approx(0.1 / (0.1 + 1.5 * sent - 0.1))
    little = costs(1e6, flops=1600e9)
    assert plan.sharded_efficiency(little, 8, cluster, 1.0) == pytest.approx(0.1 / (0.1 + 1.5 * sent / 100 / 1.5))


def test_storages_count_once_and_only_while_they_are_kept():
    model = nn.Linear(8, 8)
    x = torch.rand(4, 8, requires_grad=True)

    def forward():
        for _ in range(3):
            x.exp()  # dropped at once
        y = model(x)  # keeps x and the weight, which is no activation
        return y.relu() * y  # keeps relu's result, for both relu and the product, and y

    z, kept = plan.weigh_forward(model, forward)
    assert kept == 3 * 4 * 8 * 4
    z.sum().backward()
    expected = torch.autograd.grad(forward().sum(), x)[0]
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=0)


def test_checkpointing_keeps_the_input_only():
    block = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
    x = torch.rand(4, 8, requires_grad=True)
    out, kept = plan.weigh_forward(block, lambda: checkpoint(block, x, use_reentrant=False))
    assert kept == 4 * 8 * 4
    out.sum().backward()


def test_measured_bytes_are_those_of_the_parameters():
    """And activations and FLOPs are linear in images and pixels, but for what is the same for all images."""
    cfg = Config.fromfile(ROOT / 'configs/quickstart/retinanet_s6la-r18_shapes.py')
    cfg.model.backbone.frozen_stages = 1
    one = plan.measure_step(cfg, (160, 160), objects=3)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    assert one.parameters == sum(4 * p.numel() for p in model.parameters())
    trained = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    assert one.gradients == trained < one.parameters
    steps = 4 * sum(p.requires_grad for p in model.parameters())  # AdamW: two moments, and the number of steps
    assert one.optimizer == 2 * trained + steps
    parts = [*model.backbone.children(), *model.neck.children(), *model.bbox_head.children()]
    assert one.largest_unit == max(sum(4 * p.numel() for p in part.parameters()) for part in parts)
    for twice in (
        plan.measure_step(cfg, (160, 160), images=2, objects=3),
        plan.measure_step(cfg, (160, 320), objects=3),
    ):
        assert twice.parameters == one.parameters and twice.flops == pytest.approx(2 * one.flops, rel=0.02)
        assert twice.activations == pytest.approx(2 * one.activations, rel=0.02)


@pytest.fixture
def measurements(tmp_path):
    """A file as the tool writes it."""
    networks = {name: costs(size * 10**6, flops=800 * 10**9) for name, size in (('plain', 100), ('S6LA', 110))}
    networks['S6LA, with_cp'] = networks['S6LA']._replace(activations=500 * 10**6)
    path = tmp_path / 'measurements.json'
    path.write_text(json.dumps(dict(shape=[800, 1344], costs={'50': networks})))
    return path


def test_plan_writes_its_tables(measurements, tmp_path):
    document = tmp_path / 'plan.md'
    document.write_text(f'before\n{plan.BEGIN}\nold\n{plan.END}\nafter\n')
    options = ['--measurements', str(measurements), '--write', str(document), '--gpus', '8', '16', '--latency', '0']
    for _ in range(2):
        check(call(TOOL, *options))
    text = document.read_text()
    assert text.startswith('before\n') and text.endswith('after\n') and 'old' not in text
    assert text.count(plan.BEGIN) == 1 and text.count('### Measured') == 1
    assert '| R50 S6LA | 110.0 MB | 110.0 MB | 110.0 MB | 2.05 GiB | 1600 |' in text  # of two images
    assert '| R50, added by S6LA | +10.0% | +10.0% | +10.0% | +10.0% | +0.0% |' in text
    rows = [line.strip('| ').split(' | ') for line in text.splitlines() if line.startswith('| R50, 16 |')]
    # 15 / 16 of 2 × 110 MB; 10 of them for S6LA. 7 / 8 inside at 400 GB/s, half of an eighth at 50 and 25 GB/s.
    assert rows[0][5:] == ['206.2 MB', '309.4 MB', '18.8 MB']
    inside, between = 2 * 7 / 8 * 110 / 400, 2 * 1 / 2 * 110 / 8
    assert rows[1][1:3] == [f'{inside + between / inter:.2f} ms' for inter in (50, 25)]
    assert rows[1][8:] == ['32', '0.04', str(12 * 117266 // 32)]
    assert '| 256 | the global batch is more than 256 |' in text  # two on each of 128 are no more
    assert 'latency is more than the transfer itself' not in text  # as there is none
    assert '| `with_cp` in the backbone | 1.34 GiB | ' in text  # 2 × 500 MB of activations, 4 × 110 MB of the rest


def test_document_is_up_to_date_with_its_measurements():
    """The ratio of the document's own numbers is the share that it states."""
    lines = (ROOT / 'docs/capacity.md').read_text(encoding='utf-8').splitlines()
    for depth in (50, 101):
        rows = {}
        for name in ('plain', 'S6LA', 'added by S6LA'):
            start = f'| R{depth}, {name} |' if name == 'added by S6LA' else f'| R{depth} {name} |'
            (line,) = (line for line in lines if line.startswith(start))
            rows[name] = [float(cell.split()[0].strip('+%')) for cell in line.strip('| ').split(' | ')[1:]]
        for plain, s6la, share in zip(rows['plain'], rows['S6LA'], rows['added by S6LA']):
            assert 100 * (s6la / plain - 1) == pytest.approx(share, abs=0.5)


def test_plan_errors_are_sentences(measurements, tmp_path):
    given = ['--measurements', measurements]
    assert '12 GPUs do not fill nodes of 8: use a multiple of that' in call(TOOL, *given, '--gpus', 12).stderr
    assert 'was not measured at --shape [64, 64]' in call(TOOL, *given, '--shape', 64, 64).stderr
    assert "document 'nowhere.md' does not exist" in call(TOOL, *given, '--write', 'nowhere.md').stderr
    unmarked = tmp_path / 'unmarked.md'
    unmarked.write_text('nothing')
    assert 'once each: the tables go between them' in call(TOOL, *given, '--write', unmarked).stderr
    assert 'all options must be positive' in call(TOOL, '--gpus', 0).stderr
