"""FSDP in two processes on the CPU: every kind of backbone computes what it computes under DDP."""

from __future__ import annotations

import pytest
import torch
from distributed_steps import BACKBONES, Network, all_sharded_steps, images, start
from releases import load, since

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason='gloo is for machines without an accelerator'),
    since(2, 4, 'FSDP on the CPU'),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('fsdp')


@pytest.fixture(scope='module')
def results(folder) -> list[dict]:
    """What each of two processes found."""
    return start(all_sharded_steps, folder, str(folder))


@pytest.mark.parametrize('kind', BACKBONES)
def test_steps_are_those_of_ddp(results, kind):
    """Clipped by the norm over all shards; sums of gradients in another order differ by float32's rounding."""
    for rank in range(2):
        result = results[rank]['steps'][kind]
        torch.testing.assert_close(result['numbers'], result['expected'], rtol=1e-4, atol=1e-6)
        assert all(norm > 1e-3 for _, norm in result['numbers']), 'every step was clipped'
        torch.testing.assert_close(*result['predicted'], rtol=1e-4, atol=1e-6)
    whole, sharded = results[0]['steps'][kind]['weights']
    assert set(whole) == set(sharded)
    # AdamW divides by the root of the squares: a gradient near zero may turn a step of lr=1e-3 around.
    torch.testing.assert_close(sharded, whole, rtol=1e-3, atol=2e-4)
    parts = [result['steps'][kind]['parameters'] for result in results]
    number = parts[0][0]
    assert sum(part[1] for part in parts) >= number and all(part[1] < 0.6 * number for part in parts)


@pytest.mark.parametrize('kind', BACKBONES)
def test_checkpoint_is_a_plain_one_and_resumes(results, folder, kind):
    for result in results:
        torch.testing.assert_close(
            result['steps'][kind]['again'], result['steps'][kind]['numbers'][2:], rtol=1e-5, atol=1e-7
        )
    checkpoint = load(folder / f'{kind}.pth')
    network = Network(kind)
    network.load_state_dict(checkpoint['state_dict'])
    network.eval()
    assert network(images(2), mode='loss')['loss'].isfinite()


def test_a_unit_for_each_block_fails(results):
    """The reason for the policy: a ResNet knows a block by its type and reads its weights outside of its forward."""
    assert all(result['blocks'] for result in results)


def test_layer_decay_knows_sharded_layers(results):
    whole, sharded = results[0]['decay']
    assert len(set(whole.values())) == 5  # stem, three layers, and what follows
    assert {name: sharded[name] for name in whole if name in sharded} == whole
