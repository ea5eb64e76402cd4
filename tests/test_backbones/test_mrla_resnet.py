"""MRLAResNet: the network of its paper."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import ResNet

from s6la_mm.backbones import MRLAResNet
from s6la_mm.backbones.mrla_resnet import LightLayerAttention


def small(depth: int, **kwargs) -> MRLAResNet:
    torch.manual_seed(0)
    return MRLAResNet(depth, base_channels=8, head_channels=4, norm_eval=False, **kwargs)


def test_parameter_count_is_the_authors():
    """25.7 M with the classifier (their table of ImageNet results); by hand, 12 numbers for each channel of a block.

    The 1D kernels of their code have 5 taps for 256 to 1024 channels, and 7 for 2048.
    """
    added = sum(p.numel() for p in MRLAResNet(50).parameters()) - sum(p.numel() for p in ResNet(50).parameters())
    channels = 3 * 256 + 4 * 512 + 6 * 1024 + 3 * 2048
    assert added == 12 * channels + 2 * (13 * 5 + 3 * 7)
    plain = 25_557_032  # torchvision's ResNet-50
    assert round((plain + added) / 1e6, 1) == 25.7


def test_attention_is_the_formula():
    """Head by head, in float64."""
    torch.manual_seed(0)
    attention = LightLayerAttention(12, head_channels=4).double()
    x, previous = torch.randn(2, 2, 12, 5, 7, dtype=torch.float64)
    expected = attention.decay.view(-1, 1, 1) * previous
    for image in range(2):
        mean = F.pad(x[image].mean((1, 2)), (1, 1))
        query, key = (
            torch.stack([(proj.weight.flatten() * mean[c : c + 3]).sum() for c in range(12)])
            for proj in (attention.query, attention.key)
        )
        for head in range(0, 12, 4):
            channels = slice(head, head + 4)
            weight = torch.sigmoid(query[channels] @ key[channels] / math.sqrt(4))
            value = F.conv2d(x[image, None, channels], attention.value.weight[channels], padding=1, groups=4)
            expected[image, channels] += weight * value[0]
    torch.testing.assert_close(attention(x, previous), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('training', [False, True])
def test_outputs_are_those_of_resnet_in_shape(depth, training):
    images = torch.rand(2, 3, 65, 99)
    outs = small(depth).train(training)(images)
    plain = ResNet(depth, base_channels=8)(images)
    assert [out.shape for out in outs] == [out.shape for out in plain]


def test_without_attention_it_is_resnet():
    """With the gains of its norms at zero, in the plain network's own weights."""
    plain = ResNet(18, base_channels=8)
    plain.eval()  # mmdet's returns None
    backbone = small(18).eval()
    missing, unexpected = backbone.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all('.attention' in name for name in missing)
    for name, parameter in backbone.named_parameters():
        if '.attention_norm.' in name:
            parameter.data.zero_()
    images = torch.rand(1, 3, 65, 99)
    for out, right in zip(backbone(images), plain(images)):
        torch.testing.assert_close(out, right)


PLUGIN = dict(cfg=dict(type='ECALayer'), position='after_conv3')


@pytest.mark.parametrize('depth, options', [(18, {}), (18, dict(with_cp=True)), (50, dict(plugins=[PLUGIN]))])
def test_every_parameter_gets_a_gradient(depth, options):
    backbone = small(depth, **options)
    sum(out.square().sum() for out in backbone(torch.rand(2, 3, 65, 99))).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_recomputation_changes_nothing():
    images = torch.rand(2, 3, 33, 65)
    plain, checkpointed = small(18), small(18, with_cp=True)
    for backbone in (plain, checkpointed):
        sum(out.square().sum() for out in backbone(images)).backward()
    for (name, p), (_, q) in zip(plain.named_parameters(), checkpointed.named_parameters()):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_frozen_stages_freeze_the_attention():
    backbone = small(18, frozen_stages=2).train()
    learning = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert not any(name.startswith(('layer1', 'layer2')) for name in learning)
    assert 'layer3.0.attention.decay' in learning and not backbone.layer2[0].attention_norm.training


def test_heads_that_do_not_divide_the_channels():
    with pytest.raises(ValueError, match='head_channels=32 is not allowed: it must be a divisor of the 8 channels'):
        MRLAResNet(18, base_channels=8)
    with pytest.raises(ValueError, match='kernel_size=2'):
        LightLayerAttention(32, kernel_size=2)
