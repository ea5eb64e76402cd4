"""What people do to any network: hooks on stages and blocks, folding of norms, copies, other types and layouts."""

import copy
import functools
import io
import pickle

import pytest
import torch
from backbone_checks import loss_of, randomize
from mmcv.cnn import fuse_conv_bn
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from torch import nn

from s6la_mm.backbones.families import FAMILIES

pytest.importorskip('mmpretrain')
RESNET = dict(depth=18, base_channels=8, stem_channels=8)
WINDOWS = dict(with_cls_token=False, window_size=3, global_layers=(1,))
NETWORKS = {
    **{family.name: (family.name, family.small) for family in FAMILIES},
    'windows': ('S6LAViT', next(family.small for family in FAMILIES if family.name == 'S6LAViT') | WINDOWS),
    'bottlenecks': ('S6LAResNet', dict(RESNET, depth=50, deep_stem=True, avg_down=True)),
    'dilated stages': ('S6LAResNet', dict(RESNET, multi_grid=(1, 2), stage_with_state=(True, False, True, True))),
    'RLAResNet': ('RLAResNet', dict(RESNET, hidden_channels=4)),
    'RLA bottlenecks': ('RLAResNet', dict(RESNET, depth=50, hidden_channels=4)),
    'MRLAResNet': ('MRLAResNet', dict(RESNET, head_channels=8)),
    'MRLA bottlenecks': ('MRLAResNet', dict(RESNET, depth=50, head_channels=8)),
}
FUSED = [name for name, (kind, _) in NETWORKS.items() if 'ResNet' in kind]
every = functools.partial(pytest.mark.parametrize, 'name')
IMAGES = torch.rand(2, 3, 64, 80, generator=torch.Generator().manual_seed(0))


def build(name, **options):
    """A network with generic weights and statistics."""
    kind, small = NETWORKS[name]
    network = randomize(MODELS.build(dict(small, type=kind, **options)))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    return network.eval()


def assert_close(actual, expected, tolerance=1e-4):
    """Beside the largest number of each tensor: networks of generic weights have large ones."""
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape and (a - e).abs().max() <= tolerance * e.abs().max()


def last_stage(network):
    """The module that people hook, its last block, and what makes the network's last output of the stage's."""
    if hasattr(network, 'layer4'):
        return network.layer4, network.layer4[-1], lambda x: x
    if hasattr(network, 'downsample_layers'):
        return network.stages[3], network.stages[3][-1], network.norm3
    if hasattr(network, 'stages'):
        return network.stages[3], network.stages[3].blocks[-1], lambda x: maps(network.norm3(x[0]), x[1])
    if isinstance(network.layers[-1], nn.ModuleList):
        stage = network.layers[-1]
        return stage, stage[1][-1], lambda x: x
    return network.layers[-1], network.layers[-1], lambda x: maps(network.ln1(x)[:, network.num_extra_tokens :], (4, 5))


def maps(tokens, shape):
    return tokens.transpose(1, 2).unflatten(2, shape)


@every(NETWORKS)
@pytest.mark.parametrize('options', [{}, dict(with_cp=True)], ids=['plain', 'with_cp'])
def test_hooks(name, options):
    """They see the feature map and its gradient, and change neither; a block's output is a tensor of its own."""
    network = build(name, **options)
    expected = network(IMAGES)
    loss_of(expected).backward()
    gradients = [p.grad for p in network.parameters()]
    network.zero_grad()
    stage, block, finish = last_stage(network)
    seen, of_block, grads = [], [], []
    stage.register_forward_hook(lambda module, args, output: seen.append(output))
    block.register_forward_hook(lambda module, args, output: of_block.append(output))
    stage.register_full_backward_hook(lambda module, grad_input, grad_output: grads.append(grad_output[0]))
    outs = network(IMAGES)
    assert len(seen) == 1 and torch.equal(finish(seen[0]), outs[-1])
    assert isinstance(of_block[0], torch.Tensor)
    assert_close(outs, expected)
    feature = seen[0] if isinstance(seen[0], torch.Tensor) else seen[0][0]
    (grad,) = torch.autograd.grad(loss_of(outs), feature, retain_graph=True)
    loss_of(outs).backward()
    assert_close([grads[-1]], [grad])
    assert_close([p.grad for p in network.parameters()], gradients, 1e-3)


@every(NETWORKS)
def test_frozen_stages_with_hooks(name):
    """A frozen stage has no gradient to be seen, and its map is seen."""
    network = build(name) if name == 'S6LAPVTv2' else build(name, frozen_stages=1)
    network.train()
    kinds = ('StateStage', 'StateSwinBlockSequence', 'StatePVTStage', 'ResLayer', 'StateTransformerEncoderLayer')
    stages = [module for module in network.modules() if type(module).__name__ in kinds]
    forward, backward = [], []
    for stage in stages:
        stage.register_forward_hook(lambda stage, *args: forward.append(stage))
        stage.register_full_backward_hook(lambda stage, *args: backward.append(stage))
    loss_of(network(IMAGES)).backward()
    assert forward == stages
    assert backward[::-1] == [stage for stage in stages if next(stage.parameters()).requires_grad]


@every(FUSED)
def test_fuse_conv_bn(name):
    """All the norms that stand behind a convolution are folded, and the outputs stay; the weights are complete."""
    network = build(name)
    with torch.no_grad():
        expected = network(IMAGES)
        fused = fuse_conv_bn(copy.deepcopy(network))
        assert_close(fused(IMAGES), expected)
        again = fuse_conv_bn(build(name))
        again.load_state_dict(fused.state_dict())
        assert_close(copy.deepcopy(again)(IMAGES), fused(IMAGES))
        torch.testing.assert_close(network(IMAGES), expected, rtol=0, atol=0)  # the original is what it was
    norms = [key for key, module in fused.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert all('cells' in key or 'attention_norm' in key for key in norms)


def test_norm_folded_by_others():
    """What forgets the read is refused."""
    network = build('S6LAResNet')
    network.layer1[0].bn1 = nn.Identity()
    with pytest.raises(RuntimeError, match='fuse_conv_bn of mmcv'):
        network(IMAGES)


@every(NETWORKS)
def test_copies_types_and_layouts(name, tmp_path):
    """Copied, pickled, saved as a whole, as DDP saves it, channels last: the same outputs; in bfloat16 close ones."""
    network = build(name)
    with torch.no_grad():
        expected = network(IMAGES)
        file = io.BytesIO()
        torch.save(network, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), loaded):
            torch.testing.assert_close(other(IMAGES), expected, rtol=0, atol=0)
        torch.save({f'module.{key}': tensor for key, tensor in network.state_dict().items()}, tmp_path / 'ddp.pth')
        load_checkpoint(randomize(other, seed=3), str(tmp_path / 'ddp.pth'), map_location='cpu', strict=True)
        torch.testing.assert_close(other(IMAGES), expected, rtol=0, atol=0)
        other.to(memory_format=torch.channels_last)
        assert_close(other(IMAGES.to(memory_format=torch.channels_last)), expected, 1e-3)
        if name != 'S6LASwin':  # mmpretrain's masks are float32, and its Swin computes in no other type
            for out, e in zip(other.bfloat16()(IMAGES.bfloat16()), expected):
                assert out.dtype == torch.bfloat16 and (out.float() - e).norm() < 0.1 * e.norm()
