"""Efficient channel attention: the paper's kernel sizes, a naive loop, and its place in mmdet's plugins."""

import math

import pytest
import torch
from mmdet.models.backbones import ResNet
from mmengine.registry import MODELS

from s6la_mm.backbones import S6LAResNet
from s6la_mm.layers import ECALayer


@pytest.mark.parametrize(
    ('channels', 'kernel_size'),
    [(1, 1), (16, 3), (32, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)],
)
def test_default_kernel_size(channels, kernel_size):
    """Eq. 12 with γ = 2, b = 1; int() truncates 3.5 to 3 and rounds 4 up to 5, as the authors' code does."""
    layer = ECALayer(channels)
    assert layer.conv.kernel_size == (kernel_size,)
    assert sum(p.numel() for p in layer.parameters()) == kernel_size


@pytest.mark.parametrize('kernel_size', [None, 1, 3, 9])
@pytest.mark.parametrize('channels', [5, 64])
def test_equals_naive_loop(channels, kernel_size):
    torch.manual_seed(0)
    layer = ECALayer(channels, kernel_size).double()
    x = torch.randn(2, channels, 3, 4, dtype=torch.float64)
    weight = layer.conv.weight.detach().flatten().tolist()
    expected = torch.empty_like(x)
    for image in range(2):
        mean = x[image].mean(dim=(1, 2)).tolist()
        for channel in range(channels):
            total = 0.0
            for tap, w in enumerate(weight):
                neighbour = channel + tap - len(weight) // 2
                if 0 <= neighbour < channels:
                    total += w * mean[neighbour]
            expected[image, channel] = x[image, channel] / (1 + math.exp(-total))
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_gradient_and_autocast():
    torch.manual_seed(0)
    layer = ECALayer(16)
    x = torch.randn(2, 16, 5, 5, requires_grad=True)
    expected = layer(x)
    expected.square().mean().backward()
    assert layer.conv.weight.grad.ne(0).all() and x.grad.ne(0).any()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(layer(x), expected, rtol=0.02, atol=0.02, check_dtype=False)


@pytest.mark.parametrize('kernel_size', [0, 2, 4, -1])
def test_wrong_kernel_size(kernel_size):
    with pytest.raises(ValueError, match=f'kernel_size={kernel_size} is not allowed: it must be a positive odd number'):
        ECALayer(16, kernel_size)


def test_is_registered():
    assert isinstance(MODELS.build(dict(type='ECALayer', in_channels=8)), ECALayer)


@pytest.mark.parametrize('network', [ResNet, S6LAResNet])
@pytest.mark.parametrize(('position', 'expansion'), [('after_conv1', 1), ('after_conv2', 1), ('after_conv3', 4)])
def test_as_plugin(network, position, expansion):
    """The layer is built in the stages asked for, for the channels at its position, and applied there."""
    plugin = dict(cfg=dict(type='ECALayer'), stages=(False, True), position=position)
    backbone = network(
        50,
        base_channels=16,
        num_stages=2,
        strides=(1, 2),
        dilations=(1, 1),
        out_indices=(0, 1),
        plugins=[plugin],
    )
    assert not any(isinstance(m, ECALayer) for m in backbone.layer1.modules())
    inputs = []
    for block in backbone.layer2:
        assert isinstance(block.eca, ECALayer)
        block.eca.register_forward_hook(lambda module, args, out: inputs.append(args[0]))
    backbone(torch.rand(2, 3, 32, 32))
    assert [x.shape[1] for x in inputs] == [32 * expansion] * 4
    # It sees what the convolution of its position gives: after ReLU, except after the last one.
    assert all((x >= 0).all() == (position != 'after_conv3') for x in inputs)
