"""S6LAResNet's numbers: the plain network's with readers at zero, the definition's with readers that read."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.backbones import ResNet, ResNeXt
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from s6la_mm.backbones import S6LAResNet
from s6la_mm.layers import StateRead
from s6la_mm.ops import selective_update

S6LA_KEYS = ('initial_state', 'cells.')
GN = dict(type='GN', num_groups=2, requires_grad=True)
CONTEXT = dict(cfg=dict(type='ContextBlock', ratio=0.25), stages=(False, True, True, True), position='after_conv3')
ECA = [dict(cfg=dict(type='ECALayer', postfix=f'_{i}'), position=f'after_conv{i}') for i in (1, 2, 3)]
DCN = dict(type='DCN', deform_groups=1, fallback_on_stride=False)
DCN_STAGES = (False, True, False, False)  # mmcv's DCN is slow on CPU, and refuses maps smaller than its kernel

PLAIN_CASES = {
    'r18': dict(depth=18),
    'r34': dict(depth=34),
    'r50': dict(depth=50),
    'r18-caffe': dict(depth=18, style='caffe'),
    'r50-caffe': dict(depth=50, style='caffe'),
    'r50-v1d': dict(depth=50, deep_stem=True, avg_down=True),
    'r18-v1d': dict(depth=18, deep_stem=True, avg_down=True),
    'r50-caffe-avg_down': dict(depth=50, style='caffe', avg_down=True),
    'r50-dilated': dict(depth=50, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
    'r18-dilated': dict(depth=18, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
    'r18-strided-first-stage': dict(depth=18, strides=(2, 1, 2, 2)),
    'r50-stride-4': dict(depth=50, strides=(1, 4, 1, 2), avg_down=True),
    'r50-gn': dict(depth=50, norm_cfg=GN),
    'r18-gn': dict(depth=18, norm_cfg=GN),
    'r50-three-stages': dict(depth=50, num_stages=3, strides=(1, 2, 1), dilations=(1, 1, 2), out_indices=(2,)),
    'r18-one-stage': dict(depth=18, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,)),
    'r18-stem': dict(depth=18, in_channels=4, stem_channels=16),
    'r50-conv_cfg': dict(depth=50, conv_cfg=dict(type='ConvWS'), norm_cfg=GN),
    'x50-32x4d': dict(depth=50, groups=32, base_width=4),
    'x50-caffe': dict(depth=50, groups=4, base_width=4, style='caffe'),
    'r50-context': dict(depth=50, plugins=[CONTEXT]),
    'r50-context-everywhere': dict(depth=50, plugins=[CONTEXT | dict(stages=None)]),
    'r50-eca': dict(depth=50, plugins=ECA),
    'r50-eca-context': dict(depth=50, plugins=[*ECA, CONTEXT], style='caffe'),
    'x50-eca': dict(depth=50, groups=4, base_width=4, plugins=ECA),
    'r50-dcn': dict(depth=50, dcn=DCN, stage_with_dcn=DCN_STAGES),
    'r50-dcnv2': dict(depth=50, dcn=DCN | dict(type='DCNv2'), stage_with_dcn=DCN_STAGES),
    'x50-dcn': dict(depth=50, dcn=DCN, stage_with_dcn=DCN_STAGES, groups=4, base_width=4),
    'r50-dcn-fallback': dict(depth=50, dcn=DCN | dict(fallback_on_stride=True), stage_with_dcn=DCN_STAGES),
}


def randomize(module, readers=True, seed=0):
    """Gives every parameter and running statistic a generic value: a norm of 1 and 0 hides a missing one."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor):
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.2 if parameter.dim() == 1 else parameter.abs().mean().clamp(min=0.05)
            parameter.add_(scale * noise(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith('running_mean'):
                buffer.add_(noise(buffer) * 0.1)
            elif name.endswith('running_var'):
                buffer.mul_(1 + 0.3 * noise(buffer).abs())
        for reader in (m for m in module.modules() if isinstance(m, StateRead)):
            reader.weight.copy_(0.2 * noise(reader.weight) if readers else torch.zeros_like(reader.weight))
    return module


def build_pair(base_channels=8, **options):
    """A plain network with generic weights, and an S6LA one with the same weights and readers at zero."""
    options = dict(base_channels=base_channels, norm_eval=False) | options
    plain = (ResNeXt if 'groups' in options else ResNet)(**copy.deepcopy(options))
    s6la = S6LAResNet(state_dim=8, **copy.deepcopy(options))
    randomize(plain, seed=1)
    randomize(s6la, readers=False, seed=2)
    missing, unexpected = s6la.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert missing and all(k.startswith(S6LA_KEYS) or k.endswith('.read.weight') for k in missing)
    return plain, s6la


def assert_same(actual, expected):
    assert isinstance(actual, tuple) and len(actual) == len(expected)
    for a, e in zip(actual, expected):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-6)


def images(batch=2, channels=3, size=(33, 65), seed=0):
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def images_for(options):
    return images(channels=options.get('in_channels', 3))


@pytest.mark.parametrize('name', PLAIN_CASES)
def test_readers_at_zero_give_the_plain_network(name):
    options = PLAIN_CASES[name]
    plain, s6la = build_pair(**options)
    x = images_for(options)
    for network in (plain, s6la):
        network.eval()
    with torch.no_grad():
        expected = plain(x)
        assert all(e.ne(0).any() for e in expected)
        assert_same(s6la(x), expected)
    # Training mode: batch statistics, the update of the running ones, the gradients of the shared weights.
    for network in (plain, s6la):
        network.train()
        sum((out * out).mean() for out in network(x)).backward()
    for (key, buffer), (_, other) in zip(plain.named_buffers(), _shared(s6la.named_buffers())):
        torch.testing.assert_close(other, buffer, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f'{key}: {m}')
    gradients = {key: p.grad for key, p in s6la.named_parameters()}
    for key, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-3, atol=1e-4)


def _shared(named):
    return [(key, tensor) for key, tensor in named if not key.startswith(S6LA_KEYS)]


def test_sync_bn_gives_the_plain_network():
    plain, s6la = build_pair(depth=18, norm_cfg=dict(type='SyncBN', requires_grad=True), norm_eval=True)
    plain.eval()
    assert isinstance(s6la.layer1[0].norm1, nn.SyncBatchNorm)
    for mode in (
        True,
        False,
    ):  # its running statistics are used in both, with norm_eval: it has no CPU kernel
        assert_same(s6la.train(mode)(images()), plain(images()))


@pytest.mark.parametrize('name', PLAIN_CASES)
def test_readers_that_read_change_every_output(name):
    """Without this, a network without any reader would pass the test above."""
    options = PLAIN_CASES[name]
    plain, s6la = build_pair(**options)
    reader_of = {key: m for key, m in s6la.named_modules() if isinstance(m, StateRead)}
    assert len(reader_of) == sum(s6la.stage_blocks)
    x = images_for(options)
    plain.eval()
    s6la.eval()
    with torch.no_grad():
        last = plain(x)[-1]
        for reader in reader_of.values():
            nn.init.normal_(reader.weight, std=0.3)
            assert (s6la(x)[-1] - last).abs().max() > 1e-5 * last.abs().max()
            nn.init.zeros_(reader.weight)


def definition(network, x, options):
    """The steps of docs/definition.md, with what the code avoids: concatenation, joint weights, loops over windows."""
    strides, carries = options.get('strides', (1, 2, 2, 2)), options.get('stage_with_state', (True,) * 4)
    last_reader = max(stage for stage, carried in enumerate(carries) if carried)
    x = network.maxpool(network.relu(network.norm1(network.conv1(x))))
    h = network.initial_state.view(1, -1, 1, 1).repeat(x.shape[0], 1, *x.shape[2:])
    outs = []
    for stage, carried in enumerate(carries):
        layer = getattr(network, f'layer{stage + 1}')
        for index, block in enumerate(layer):
            stride = strides[stage] if index == 0 else 1
            identity = x if block.downsample is None else block.downsample(x)
            conv, inputs = block.conv1, x
            weight = conv.weight
            if carried:
                inputs, weight = torch.cat([x, h], dim=1), torch.cat([weight, block.read.weight], dim=1)
            out = F.conv2d(inputs, weight, None, conv.stride, conv.padding, conv.dilation)
            out = block.conv2(F.relu(block.norm1(out)))
            out = block.norm2(out) if block.expansion == 1 else block.norm3(block.conv3(F.relu(block.norm2(out))))
            x = F.relu(out + identity)
            pooled = [
                h[..., r : r + stride, c : c + stride].mean(dim=(2, 3))
                for r, c in itertools.product(range(0, h.shape[2], stride), range(0, h.shape[3], stride))
            ]
            h = torch.stack(pooled, dim=-1).view(*h.shape[:2], *x.shape[2:])
            is_last = stage == last_reader and index == len(layer) - 1
            if carried and (options.get('out_state') or not is_last):
                of_block = '' if options.get('shared_cell', True) else f'_{index}'
                h = write(network.cells[f'layer{stage + 1}{of_block}'], x, h)
        if stage in network.out_indices:
            outs.append(x)
    return (*outs, h) if options.get('out_state') else tuple(outs)


def write(cell, x, h):
    u = F.conv2d(x, cell.in_proj.weight)
    if cell.input_norm is not None:
        rms = (u.square().mean(dim=1, keepdim=True) + torch.finfo(u.dtype).eps).rsqrt()
        u = u * rms * cell.input_norm.weight.view(1, -1, 1, 1)
    dt, B = F.conv2d(u, cell.dt_proj.weight), F.conv2d(u, cell.B_proj.weight)
    options = dict(dt_bias=cell.dt_bias, dt_softplus=True, discretization=cell.discretization)
    return selective_update(h, u, dt, -cell.A_log.exp(), B, **options)


@pytest.mark.parametrize(
    'options',
    [
        dict(depth=18),
        dict(depth=18, out_state=True, discretization='zoh', input_norm=None),
        dict(depth=18, shared_cell=False),
        dict(depth=50, shared_cell=False, out_state=True, stage_with_state=(True, False, True, False)),
        dict(depth=34, stage_with_state=(False, True, False, False)),
        dict(depth=18, stage_with_state=(True, False, False, True), out_state=True),
        dict(depth=18, stage_with_state=(True, True, False, False), out_state=True),
        dict(depth=18, strides=(2, 1, 2, 1), dilations=(1, 2, 1, 2)),
        dict(depth=50),
        dict(depth=50, style='caffe', out_state=True),
        dict(
            depth=50,
            strides=(1, 2, 1, 1),
            dilations=(1, 1, 2, 4),
            stage_with_state=(False, False, True, True),
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize('train', [False, True])
def test_network_equals_its_definition(options, train):
    network = randomize(S6LAResNet(base_channels=8, state_dim=8, norm_eval=not train, **options))
    network.train(train)
    with torch.no_grad():
        outs = network(images())
        for actual, expected in zip(outs, definition(network, images(), options)):
            assert actual.std() > 0
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize('depth', [18, 34, 50, 101, 152])
def test_structure(depth):
    """Every block reads; one cell per stage; everything else keeps the plain network's names and shapes."""
    plain, s6la = ResNet(depth, base_channels=8), S6LAResNet(depth, base_channels=8, state_dim=8)
    shapes = {k: v.shape for k, v in s6la.state_dict().items()}
    assert {k: v.shape for k, v in plain.state_dict().items()}.items() <= shapes.items()
    blocks = [block for name in s6la.res_layers for block in getattr(s6la, name)]
    assert len(blocks) == sum(ResNet.arch_settings[depth][1])
    assert all(isinstance(block.read, StateRead) for block in blocks)
    assert list(s6la.cells) == ['layer1', 'layer2', 'layer3', 'layer4']

    def count(module):
        return sum(p.numel() for p in module.parameters())

    readers = sum(8 * b.conv1.out_channels * b.conv1.kernel_size[0] ** 2 for b in blocks)
    # Per cell: W_u (D × N), W_Δ and W_B (N × N), A_log, b_Δ and the norm's gain (N).
    cells = sum(8 * 2**i * s6la.block.expansion * 8 + 2 * 8 * 8 + 3 * 8 for i in range(4))
    assert count(s6la) - count(plain) == readers + cells + 8


def test_parameter_count_of_resnet50():
    classifier = 2048 * 1000 + 1000
    assert classifier == pytest.approx(2.049e6)
    plain = sum(p.numel() for p in ResNet(50).parameters()) + classifier
    s6la = sum(p.numel() for p in S6LAResNet(50).parameters()) + classifier
    assert plain == pytest.approx(25.557e6, abs=5e2)
    assert s6la == pytest.approx(25.81e6, abs=0.02e6)


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('style', ['pytorch', 'caffe'])
@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('size', [(33, 65), (65, 33), (32, 96), (1, 70), (31, 1), (224, 64)])
def test_odd_and_rectangular_images(depth, style, train, size):
    """(32, 96) has a 1-pixel-high deepest map, (1, 70) is 1 pixel high from the start."""
    options = dict(depth=depth, style=style, base_channels=8, norm_eval=False)
    plain = ResNet(**options)
    plain.eval()
    network = randomize(S6LAResNet(**options, state_dim=8, out_state=True)).train(train)
    x = images(size=size)
    *outs, state = network(x)
    assert [out.shape for out in outs] == [out.shape for out in plain(x)]
    assert state.shape == (2, 8, *outs[-1].shape[2:])
    assert all(out.isfinite().all() for out in (*outs, state))
    sum(out.square().mean() for out in (*outs, state)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize('train', [False, True])
def test_full_size_odd_image(train):
    network = S6LAResNet(50, norm_eval=False, out_state=True).train(train)
    shapes = [tuple(out.shape) for out in network(images(size=(333, 517)))]
    assert shapes == [
        (2, 256, 84, 130),
        (2, 512, 42, 65),
        (2, 1024, 21, 33),
        (2, 2048, 11, 17),
        (2, 32, 11, 17),
    ]


@pytest.mark.parametrize('out_indices', [(0,), (3,), (0, 2), (1, 2, 3), [0, 3]])
@pytest.mark.parametrize('out_state', [False, True])
def test_out_indices(out_indices, out_state):
    everything = S6LAResNet(18, base_channels=8, state_dim=8, out_state=True).eval()
    some = S6LAResNet(18, base_channels=8, state_dim=8, out_indices=out_indices, out_state=out_state).eval()
    some.load_state_dict(randomize(everything).state_dict())
    outs = everything(images())
    assert_same(some(images()), tuple(outs[i] for i in out_indices) + (outs[-1:] if out_state else ()))


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmseg', 'mmpretrain'])
def test_builds_under_every_default_scope(scope):
    registry = MODELS
    if scope != 'mmengine':
        registry = pytest.importorskip(f'{scope}.registry').MODELS
    plugins = [dict(cfg=dict(type='ECALayer'), position='after_conv3')]
    with DefaultScope.overwrite_default_scope(scope):
        backbone = registry.build(dict(type='S6LAResNet', depth=50, base_channels=8, plugins=plugins))
    assert type(backbone) is S6LAResNet


PLUGIN = dict(cfg=dict(type='ECALayer'), position='after_conv3')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(depth=20), 'S6LAResNet cannot be built with depth=20, .*: invalid depth 20 for resnet'),
        (dict(state_dim=0), 'state_dim=0.*positive integer'),
        (dict(state_dim=-1), 'state_dim=-1.*positive integer'),
        (dict(state_dim=2.5), r'state_dim=2\.5.*positive integer'),
        (dict(state_dim='32'), "state_dim='32'.*positive integer"),
        (dict(discretization='tustin'), "discretization='tustin'.*euler.*zoh"),
        (dict(input_norm='bn'), "input_norm='bn'.*rms.*None"),
        (dict(read_init='one'), "read_init='one'.*zero.*kaiming"),
        (dict(stage_with_state=(True, True)), r'stage_with_state=\(True, True\).*num_stages=4'),
        (
            dict(stage_with_state=(False,) * 4),
            r'stage_with_state=\(False, False, False, False\).*True somewhere',
        ),
        (dict(stage_with_state=True), 'stage_with_state=True.*sequence of length num_stages'),
        (dict(num_stages=5), 'S6LAResNet cannot be built with .*num_stages=5'),
        (dict(num_stages=0), 'S6LAResNet cannot be built with .*num_stages=0'),
        (dict(num_stages=3), 'S6LAResNet cannot be built with .*num_stages=3'),
        (dict(strides=(1, 2)), r'S6LAResNet cannot be built with .*strides=\(1, 2\)'),
        (dict(dilations=(1, 1, 1)), r'S6LAResNet cannot be built with .*dilations=\(1, 1, 1\)'),
        (dict(out_indices=(0, 4)), r'S6LAResNet cannot be built with .*out_indices=\(0, 4\)'),
        (dict(out_indices=(-1,)), r'out_indices=\(-1,\) is not allowed: .*stages from 0 to 3'),
        (dict(out_indices=()), r'S6LAResNet cannot be built with .*out_indices=\(\)'),
        (dict(strides=3), 'S6LAResNet cannot be built with .*strides=3'),
        (dict(frozen_stages=5), 'S6LAResNet cannot be built with .*frozen_stages=5'),
        (dict(frozen_stages=-2), 'frozen_stages=-2.*-1.*num_stages=4'),
        (dict(style='tensorflow'), "S6LAResNet cannot be built with .*style='tensorflow'"),
        (dict(depth=18, style='tensorflow'), "style='tensorflow'.*pytorch.*caffe"),
        (dict(groups=0), 'groups=0.*'),
        (dict(groups=-4), 'groups=-4.*'),
        (dict(groups=32, base_width=0), 'base_width=0.*'),
        (dict(depth=18, groups=32), 'groups=32.*depth 18.*50'),
        (dict(depth=18, plugins=[PLUGIN]), 'S6LAResNet cannot be built with depth=18, .*plugins=.*Not implemented yet'),
        (dict(depth=18, dcn=dict(type='DCN')), 'dcn=.*depth 18.*50'),
        (
            dict(dcn=dict(type='DCN'), stage_with_dcn=(True,)),
            r'S6LAResNet cannot be built with .*stage_with_dcn=\(True,\)',
        ),
        (dict(plugins=[PLUGIN | dict(position='after_conv4')]), 'S6LAResNet cannot be built with .*after_conv4'),
        (dict(plugins=[PLUGIN | dict(stages=(True,))]), r'S6LAResNet cannot be built with .*stages.*\(True,\)'),
    ],
    ids=str,
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        S6LAResNet(**dict(depth=50, base_channels=8) | options)
