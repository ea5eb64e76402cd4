"""S6LAConvNeXt: the plain network with reads at zero, the definition with reads that read, and its options."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from backbone_checks import (
    assert_neutral,
    assert_trainable_get_gradients,
    assert_with_cp_changes_nothing,
    build_pair,
    images,
    is_state_key,
    parameters_on_meta,
    randomize,
)

from s6la_mm.ops import selective_update

ConvNeXt = pytest.importorskip('mmpretrain.models').ConvNeXt
from s6la_mm.backbones import S6LAConvNeXt  # noqa: E402

ARCH = dict(depths=[2, 1, 2], channels=[8, 12, 16])
TINY = dict(arch=ARCH, out_indices=[0, 1, 2], gap_before_final_norm=False, layer_scale_init_value=1.0)
V2 = dict(use_grn=True, layer_scale_init_value=0.0)


def build(**options):
    torch.manual_seed(0)
    return S6LAConvNeXt(**copy.deepcopy(TINY) | dict(state_dim=4) | options)


@pytest.mark.parametrize('size', [(16, 16), (37, 50), (31, 17), (16, 77)])
@pytest.mark.parametrize(
    'options',
    [
        dict(),
        V2,
        dict(linear_pw_conv=False),
        dict(V2, linear_pw_conv=False),
        dict(gap_before_final_norm=True, out_indices=[2]),
        dict(stem_patch_size=2, act_cfg=dict(type='ReLU'), norm_cfg=dict(type='LN2d', eps=1e-3)),
    ],
    ids=str,
)
def test_reads_at_zero_give_the_plain_network(size, options):
    assert_neutral(*build_pair(ConvNeXt, S6LAConvNeXt, TINY | options), images(size=size))


def test_drop_path_draws_as_in_the_plain_network():
    plain, s6la = build_pair(ConvNeXt, S6LAConvNeXt, TINY | dict(drop_path_rate=0.7))
    outs = []
    for network in (plain, s6la):
        network.train()
        torch.manual_seed(3)
        outs.append(network(images(8, size=(32, 32))))
    torch.testing.assert_close(outs[1], outs[0])


def definition(network, x, carries=(True, True, True), out_state=False, shared_cell=True):
    """The steps of s6la.md, with what the code avoids: a concatenation before pw1, and loops over windows."""
    last_reader = max(stage for stage, carried in enumerate(carries) if carried)
    outs = []
    for stage, blocks in enumerate(network.stages):
        x = network.downsample_layers[stage](x)
        if stage == 0:
            h = network.initial_state.view(1, -1, 1, 1).repeat(x.shape[0], 1, *x.shape[2:])
        else:
            rows, columns = x.shape[2:]
            windows = [h[..., 2 * r : 2 * r + 2, 2 * c : 2 * c + 2] for r in range(rows) for c in range(columns)]
            h = torch.stack([window.mean(dim=(2, 3)) for window in windows], dim=-1).view(*h.shape[:2], rows, columns)
        for index, block in enumerate(blocks):
            z = block.norm(block.depthwise_conv(x))
            weight = block.pointwise_conv1.weight.flatten(1)
            if carries[stage]:
                z = torch.cat([z, h], dim=1)
                weight = torch.cat([weight, weight @ block.read.weight.flatten(1)], dim=1)
            z = block.act(torch.einsum('ed,bdhw->behw', weight, z) + block.pointwise_conv1.bias.view(-1, 1, 1))
            if block.grn is not None:
                z = block.grn(z)
            z = torch.einsum('de,behw->bdhw', block.pointwise_conv2.weight.flatten(1), z)
            z = z + block.pointwise_conv2.bias.view(-1, 1, 1)
            x = x + (z if block.gamma is None else z * block.gamma.view(-1, 1, 1))
            is_last = stage == last_reader and index == len(blocks) - 1
            if carries[stage] and (out_state or not is_last):
                h = write(network.cells[f'stage{stage}' if shared_cell else f'stage{stage}_{index}'], x, h)
        outs.append(getattr(network, f'norm{stage}')(x))
    return (*outs, h) if out_state else tuple(outs)


def write(cell, x, h):
    u = F.conv2d(x, cell.in_proj.weight)
    if cell.input_norm is not None:
        u = u * (u.square().mean(dim=1, keepdim=True) + 1e-6).rsqrt() * cell.input_norm.weight.view(-1, 1, 1)
    options = dict(dt_bias=cell.dt_bias, dt_softplus=True, discretization=cell.discretization)
    dt, B = (F.conv2d(u, proj.weight) for proj in (cell.dt_proj, cell.B_proj))
    return selective_update(h, u, dt, -cell.A_log.exp(), B, **options)


@pytest.mark.parametrize('size', [(32, 32), (37, 50)])
@pytest.mark.parametrize('with_grad', [False, True])  # which add the read in different ways
@pytest.mark.parametrize(
    ('options', 'path'),
    [
        (dict(), dict()),
        (V2, dict()),
        (dict(V2, linear_pw_conv=False), dict()),
        (dict(discretization='zoh', input_norm=None), dict(out_state=True)),
        (dict(), dict(shared_cell=False, out_state=True)),
        (dict(stage_with_state=(True, False, True)), dict(carries=(True, False, True))),
        (dict(stage_with_state=[True, True, False]), dict(carries=(True, True, False), out_state=True)),
    ],
    ids=str,
)
def test_network_equals_its_definition(size, with_grad, options, path):
    own = {key: value for key, value in path.items() if key != 'carries'}
    network = randomize(build(**options, **own)).eval()
    x = images(size=size)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        with torch.set_grad_enabled(with_grad):
            outs = network(x.contiguous(memory_format=memory_format))
        with torch.no_grad():
            for actual, expected in zip(outs, definition(network, x, **path), strict=True):
                assert actual.std() > 0
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        network.to(memory_format=torch.channels_last)


@pytest.mark.parametrize('flags', [f for f in itertools.product((True, False), repeat=3) if any(f)], ids=str)
@pytest.mark.parametrize('out_state', [False, True])
def test_every_trainable_parameter_gets_a_gradient(flags, out_state):
    """With every frozen_stages, which must leave nothing half-frozen."""
    for frozen_stages in range(-1, 4):
        network = build(stage_with_state=flags, out_state=out_state, frozen_stages=frozen_stages)
        assert_trainable_get_gradients(network, images(size=(37, 50)))


@pytest.mark.parametrize(
    'options',
    [V2, dict(linear_pw_conv=False), dict(gap_before_final_norm=True), dict(shared_cell=False, frozen_stages=1)],
    ids=str,
)
def test_every_trainable_parameter_gets_a_gradient_with_options(options):
    assert_trainable_get_gradients(build(**options), images(size=(37, 50)))


@pytest.mark.parametrize(
    'options', [V2, dict(linear_pw_conv=False), dict(stage_with_state=(False, True, True))], ids=str
)
def test_with_cp_changes_nothing_but_memory(options):
    assert_with_cp_changes_nothing(build(**options), build(**options, with_cp=True), images(size=(37, 50)))


def test_with_cp_recomputes_once():
    """Blocks without state and downsampling too; the blocks must not be checkpointed inside a checkpoint."""
    network = build(with_cp=True, stage_with_state=(True, False, True)).train()
    calls = []
    for module in (network.stages[1][0].depthwise_conv, network.downsample_layers[1][1]):
        module.register_forward_pre_hook(lambda *args: calls.append(1))
    sum(out.square().mean() for out in network(images(size=(32, 32)))).backward()
    assert len(calls) == 4


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 3])
def test_frozen_stages(frozen_stages):
    network = randomize(build(frozen_stages=frozen_stages, out_state=True))
    frozen = range(max(frozen_stages, 0))
    names = tuple(f'{part}{i}.' for part in ('downsample_layers.', 'stages.', 'cells.stage') for i in frozen)
    names += ('initial_state',) if frozen_stages > 0 else ()
    graph = set()
    for i, stage in enumerate(network.stages):
        for block in stage:
            block.register_forward_hook(lambda module, args, out, i=i: graph.add(i) if out.requires_grad else None)
    for mode in (True, False, True):
        assert network.train(mode) is network
        for name, parameter in network.named_parameters():
            assert parameter.requires_grad == (not name.startswith(names)), name
        assert all(stage.training == (mode and i not in frozen) for i, stage in enumerate(network.stages))
    network(images(size=(32, 32)))
    assert graph == {0, 1, 2} - set(frozen)  # frozen stages need no backward pass


@pytest.mark.parametrize('gap', [True, False])
@pytest.mark.parametrize(('out_indices', 'chosen'), [(-1, [2]), ((0, -1), [0, 2]), ([1], [1])])
def test_outputs(gap, out_indices, chosen):
    everything = randomize(build(gap_before_final_norm=gap, out_state=True)).eval()
    some = build(gap_before_final_norm=gap, out_indices=out_indices, out_state=True).eval()
    some.load_state_dict(everything.state_dict(), strict=False)
    *outs, state = everything(images(size=(50, 70)))
    *maps, same = some(images(size=(50, 70)))
    torch.testing.assert_close(maps, [outs[i] for i in chosen])
    assert state.shape == (2, 4, 3, 4) and same.equal(state)
    assert [out.shape for out in outs] == [
        (2, c) if gap else (2, c, *size) for c, size in zip(ARCH['channels'], [(12, 17), (6, 8), (3, 4)])
    ]


@pytest.mark.parametrize('depths', [[2, 1, 2], [3, 3, 9, 3], [3, 3, 27, 3]])
def test_layer_depth(depths):
    """What the base class knows keeps its depth; a cell is as deep as its stage's last block."""
    options = TINY | dict(arch=dict(depths=depths, channels=[8] * len(depths)), out_indices=[0])
    network, plain = S6LAConvNeXt(**options, state_dim=4, shared_cell=False), ConvNeXt(**options)
    for name, _ in network.named_parameters():
        depth = network.get_layer_depth(f'backbone.{name}', 'backbone.')
        if not is_state_key(name) or name.startswith('stages'):
            assert depth == plain.get_layer_depth(f'backbone.{name}', 'backbone.')
        elif name == 'initial_state':
            assert depth == (0, plain.get_layer_depth('norm0.weight')[1])
        else:
            stage = int(name.removeprefix('cells.stage')[0])
            assert depth == plain.get_layer_depth(f'stages.{stage}.{depths[stage] - 1}.norm.weight'), name
    assert network.get_layer_depth('head.weight', 'backbone.') == plain.get_layer_depth('head.weight', 'backbone.')


@pytest.mark.parametrize('options', [dict(arch='tiny'), dict(arch='small'), dict(arch='base'), dict(V2, arch='atto')])
def test_zoo(options):
    """Names and sizes are the plain network's; S6LA adds a cell per stage and a 1 × 1 read per block."""
    plain, s6la = (parameters_on_meta(c, **options) for c in (ConvNeXt, S6LAConvNeXt))
    assert plain.items() <= s6la.items()
    new = {name: size for name, size in s6la.items() if name not in plain}
    assert all(is_state_key(name) for name in new)
    settings, N = ConvNeXt.arch_settings[options['arch']], 32
    # h⁰; per block W_read; per stage W_u, W_Δ, W_B, A, b_Δ and the norm's gain.
    expected = N + sum(L * N * D + N * D + 2 * N * N + 3 * N for L, D in zip(settings['depths'], settings['channels']))
    assert sum(new.values()) == expected < 0.04 * sum(plain.values())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='huger'), "arch='huger'.*atto"),
        (dict(arch=dict(depths=[1])), 'arch=.*channels'),
        (dict(arch=dict(depths=[1], channels=3), out_indices=[0]), 'S6LAConvNeXt cannot be built with arch=.*channels'),
        (dict(out_indices=(3,)), r'out_indices=\(3,\).*from -3 to 2'),
        (dict(out_indices=-4), r'out_indices=-4.*from -3 to 2'),
        (dict(out_indices=()), r'out_indices=\(\).*one or more'),
        (dict(frozen_stages=4), 'frozen_stages=4.*-1 to 3'),
        (dict(stage_with_state=(True,)), r'stage_with_state=\(True,\).*num_stages=3'),
        (dict(read_init='one'), "read_init='one'.*zero.*kaiming"),
        (dict(norm_cfg=dict(type='None')), r'S6LAConvNeXt cannot be built with .*norm_cfg=.*Cannot find None'),
    ],
    ids=str,
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_image_that_is_too_small():
    with pytest.raises(ValueError, match='15 x 50 pixels are too small: use 16 x 16 or more'):
        build()(images(size=(15, 50)))
