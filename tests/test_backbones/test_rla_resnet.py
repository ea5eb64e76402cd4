"""RLAResNet: the network of its paper."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import ResNet

from s6la_mm.backbones import RLAResNet


def small(depth: int, **kwargs) -> RLAResNet:
    torch.manual_seed(0)
    return RLAResNet(depth, base_channels=8, hidden_channels=4, norm_eval=False, **kwargs)


@pytest.mark.parametrize('depth, published', [(50, 24.67), (101, 42.92)])
def test_parameter_count_is_the_authors(depth, published):
    """The table of the authors' README; their script counts batch norm too and divides by 2**20."""
    backbone = sum(parameter.numel() for parameter in RLAResNet(depth).parameters())
    # Their classifier sees [x, h], so the last block writes (2 more numbers for each of 32 channels) and its h has a
    # batch norm of its own.
    classifier = 2 * 32 + 2 * 32 + (2048 + 32) * 1000 + 1000
    assert round((backbone + classifier) / 2**20, 2) == published


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('training', [False, True])
def test_outputs_are_those_of_resnet(depth, training):
    images = torch.rand(2, 3, 65, 99)
    outs = small(depth).train(training)(images)
    plain = ResNet(depth, base_channels=8)(images)
    assert isinstance(outs, tuple)
    assert [out.shape for out in outs] == [out.shape for out in plain]
    assert [out.shape for out in small(depth, out_indices=(1, 3))(images)] == [plain[1].shape, plain[3].shape]


PLUGIN = dict(cfg=dict(type='ECALayer'), position='after_conv3')


@pytest.mark.parametrize('depth, options', [(18, {}), (50, dict(with_cp=True)), (50, dict(plugins=[PLUGIN]))])
def test_every_parameter_gets_a_gradient(depth, options):
    backbone = small(depth, **options)
    # Sums after a batch norm do not depend on what goes into it; sums of squares do.
    sum(out.square().sum() for out in backbone(torch.rand(2, 3, 65, 99))).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_forward_is_the_recurrence():
    """Two stages of basic blocks against the paper's equations, in float64, with weights and statistics at random."""
    backbone = small(18, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1)).double().eval()
    for tensor in (*backbone.parameters(), *backbone.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.1, 0.3).mul_(torch.randn_like(tensor).sign() if tensor.dim() > 1 else 1)
    images = torch.rand(1, 3, 37, 30, dtype=torch.float64)

    x = F.max_pool2d(F.relu(backbone.norm1(F.conv2d(images, backbone.conv1.weight, stride=2, padding=3))), 3, 2, 1)
    h = torch.zeros(1, 4, *x.shape[2:], dtype=torch.float64)
    expected = []
    for stage, layer in enumerate((backbone.layer1, backbone.layer2)):
        cell = backbone.cells[f'layer{stage + 1}']
        for t, block in enumerate(layer):
            stride = 2 if (stage, t) == (1, 0) else 1
            y = F.conv2d(torch.cat((x, h), 1), block.conv1.weight, stride=stride, padding=1)
            y = block.norm2(F.conv2d(F.relu(block.norm1(y)), block.conv2.weight, padding=1))
            x = F.relu(y + (x if block.downsample is None else block.downsample(x)))
            if stride == 2:
                h = F.avg_pool2d(h, 2, ceil_mode=True, count_include_pad=False)
            if (stage, t) != (1, 1):  # nothing reads after the last block
                h = h + F.conv2d(y, cell.conv_out.weight)
                h = F.conv2d(torch.tanh(cell.norms[t](h)), cell.recurrent_conv.weight, padding=1)
        expected.append(x)
    for out, right in zip(backbone(images), expected):
        torch.testing.assert_close(out, right, rtol=1e-10, atol=1e-10)


def test_layout_is_kept_and_changes_nothing():
    backbone, images = small(18).double().eval(), torch.rand(1, 3, 65, 99, dtype=torch.float64)
    outs = backbone(images)
    backbone.to(memory_format=torch.channels_last)
    for out, right in zip(backbone(images.to(memory_format=torch.channels_last)), outs):
        assert out.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(out, right, rtol=1e-10, atol=1e-10)


def test_frozen_stages_freeze_the_cells():
    backbone = small(18, frozen_stages=2).train()
    learning = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert not any(name.startswith(('layer1', 'layer2', 'cells.layer1', 'cells.layer2')) for name in learning)
    assert {'cells.layer3.conv_out.weight', 'cells.layer4.norms.0.weight'} <= learning
    assert not backbone.cells['layer2'].norms[0].training and backbone.cells['layer3'].norms[0].training


@pytest.mark.parametrize('value', [0, 2.0, None])
def test_wrong_hidden_channels(value):
    with pytest.raises(ValueError, match='hidden_channels='):
        RLAResNet(18, hidden_channels=value)
