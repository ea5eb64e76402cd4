"""Two processes on the CPU, beyond a plain training: recomputation, accumulation, two nodes."""

from __future__ import annotations

import json
import socket
import subprocess

import pytest
import torch
from distributed_steps import BACKBONES, accumulated_steps, all_steps, start
from tool_runner import ROOT, TOOLS, environment

without_accelerator = pytest.mark.skipif(
    torch.cuda.is_available(), reason='gloo is for machines without an accelerator'
)


@pytest.fixture(scope='module')
def results(tmp_path_factory) -> list[dict]:
    """What each of two processes found."""
    return start(all_steps, tmp_path_factory.mktemp('two'))


@without_accelerator
@pytest.mark.parametrize('kind', BACKBONES)
def test_recomputation_changes_no_gradient(results, kind):
    """DDP without find_unused_parameters and static_graph; a parameter left out would stop its second step."""
    plain, checkpointed = (results[0]['checkpointed'][f'{kind} {with_cp}'] for with_cp in (False, True))
    torch.testing.assert_close(checkpointed, plain, rtol=1e-6, atol=1e-8)
    # All but the first read, which sees the initial state: zero at the start.
    assert sum(bool(gradient.any()) for gradient in plain.values()) >= len(plain) - 1
    torch.testing.assert_close(results[1]['checkpointed'][f'{kind} True'], checkpointed, rtol=0, atol=0)


def test_accumulated_steps_are_those_of_the_whole_batch():
    """Batch norm in evaluation mode: the mean over the parts is the mean over the batch, but for the order of sums."""
    whole, parts = (accumulated_steps(0, 1, counts) for counts in (1, 2))
    assert whole['moved'] == [True, True] and parts['moved'] == [False, True, True, True]
    assert_same_change(parts['change'], whole['change'])


@without_accelerator
def test_accumulated_steps_of_two_processes(results):
    """Gradients are exchanged with the last part alone."""
    whole = accumulated_steps(0, 1, 1)
    for result in results:
        assert result['accumulated']['are_equal'] == [False, True, False, True]
        assert_same_change(result['accumulated']['change'], whole['change'])


def assert_same_change(actual: dict, expected: dict) -> None:
    """Within 1e-4 of each tensor's change: float32 rounds weights of 1 at 6e-8, and steps are down to 1e-3 of them."""
    for name, change in expected.items():
        assert (actual[name] - change).norm() <= 1e-4 * change.norm() + 1e-7, name


@pytest.mark.nightly
@without_accelerator
def test_two_nodes_with_a_scaled_learning_rate(tmp_path):
    """tools/dist_train.sh as on two machines, both at the loopback address; 2 × 2 of 16 images give a quarter."""
    config = tmp_path / 'tiny.py'
    config.write_text(
        f'_base_ = {str(ROOT / "configs/quickstart/retinanet_s6la-r18_shapes.py")!r}\n'
        'generator = dict(num_train=8, num_val=2, image_size=64)\n'
        'dataset = dict(generator=generator)\n'
        'loader = dict(num_workers=0, persistent_workers=False)\n'
        'train_dataloader = dict(batch_size=2, dataset=dataset, **loader)\n'
        'val_dataloader = dict(dataset=dataset, **loader)\n'
        'test_dataloader = val_dataloader\n'
        'train_cfg = dict(max_iters=2, val_interval=2)\n'
        'default_hooks = dict(logger=dict(interval=1))\n'
        'auto_scale_lr = dict(base_batch_size=16)\n'
        'param_scheduler = None\n'
    )
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]  # a free one
    nodes_environment = environment(
        GLOO_SOCKET_IFNAME='lo',
        S6LA_SHAPES_ROOT=str(tmp_path / 'shapes'),
        **dict(NNODES='2', MASTER_ADDR='127.0.0.1', PORT=str(port)),
    )
    nodes = []
    for rank in range(2):
        with (tmp_path / f'{rank}.log').open('w') as log:
            nodes.append(
                subprocess.Popen(
                    ['bash', TOOLS / 'dist_train.sh', config, '1', '--work-dir', tmp_path / 'w', '--auto-scale-lr'],
                    env={**nodes_environment, 'NODE_RANK': str(rank)},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        statuses = [node.wait(240) for node in nodes]
    finally:
        for node in nodes:
            if node.poll() is None:
                node.terminate()  # the script passes it on to torchrun
                node.wait(30)
    output = (tmp_path / '0.log').read_text()
    assert statuses == [0, 0], output[-3000:]
    (scalars,) = (tmp_path / 'w').glob('*/vis_data/scalars.json')
    rates = [entry['lr'] for entry in map(json.loads, scalars.open()) if 'lr' in entry]
    assert rates == pytest.approx([2e-3 * 4 / 16] * 2)
    assert (tmp_path / 'w/iter_2.pth').is_file() and 'Iter(val)' in output
