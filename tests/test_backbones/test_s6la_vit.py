"""S6LAViT: the plain network with reads at zero, the definition with reads that read, and its options."""

import copy

import pytest
import torch
from backbone_checks import (
    assert_bf16_autocast_is_close,
    assert_neutral,
    assert_state_is_initialised,
    assert_trainable_get_gradients,
    assert_with_cp_changes_nothing,
    build_pair,
    definition_layer,
    images,
    is_state_key,
    parameters_on_meta,
    randomize,
)
from forked import Forked
from mmengine.model import BaseModule, Sequential
from mmengine.registry import MODELS, DefaultScope
from torch import nn

VisionTransformer = pytest.importorskip('mmpretrain.models').VisionTransformer
from s6la_mm.backbones import S6LAViT  # noqa: E402

ARCH = dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=24)
TINY = dict(arch=ARCH, img_size=16, patch_size=4)
NO_TOKEN = dict(with_cls_token=False, out_type='featmap')
OUT_TYPES = [('cls_token', True), *[(kind, token) for kind in ('featmap', 'avg_featmap', 'raw') for token in (0, 1)]]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """init_weights of a root module logs one line per parameter."""
    monkeypatch.setattr(BaseModule, '_dump_init_info', lambda self: None)


def build(**options):
    return S6LAViT(**copy.deepcopy(TINY) | dict(state_dim=4, out_type='featmap') | options)


@pytest.mark.parametrize('size', [(16, 16), (19, 33), (1, 40)])
@pytest.mark.parametrize(('out_type', 'with_cls_token'), OUT_TYPES)
def test_reads_at_zero_give_the_plain_network(out_type, with_cls_token, size):
    options = TINY | dict(out_type=out_type, with_cls_token=bool(with_cls_token), out_indices=[1, 3])
    assert_neutral(*build_pair(VisionTransformer, S6LAViT, options), images(size=size))


@pytest.mark.parametrize(
    'options',
    [
        dict(final_norm=False, qkv_bias=False, layer_scale_init_value=0.5),
        dict(pre_norm=True, interpolate_mode='bilinear'),
        dict(img_size=(16, 24), patch_size=(4, 8)),
        dict(patch_cfg=dict(stride=3), norm_cfg=dict(type='LN', eps=1e-5)),
        dict(layer_cfgs=[dict(num_heads=i) for i in (1, 2, 4, 8)]),
    ],
    ids=str,
)
def test_options_of_the_base_class_give_the_plain_network(options):
    assert_neutral(*build_pair(VisionTransformer, S6LAViT, TINY | dict(out_type='raw') | options), images())


@pytest.mark.parametrize(('out_type', 'with_cls_token'), OUT_TYPES)
@pytest.mark.parametrize('options', [dict(), dict(discretization='zoh', input_norm=None, final_norm=False)], ids=str)
def test_network_equals_its_definition(out_type, with_cls_token, options):
    network = randomize(build(out_type=out_type, with_cls_token=bool(with_cls_token), **options)).eval()
    x, extra = images(size=(16, 16)), int(with_cls_token)
    with torch.no_grad():
        tokens, hw = network.patch_embed(x)
        if extra:
            tokens = torch.cat([network.cls_token.repeat(2, 1, 1), tokens], dim=1)
        tokens = tokens + network.pos_embed
        h = network.initial_state.repeat(2, 16, 1)
        for i, layer in enumerate(network.layers):
            if out_type == 'cls_token' and i == 3:
                assert not hasattr(layer, 'read')
                tokens = layer(tokens)
            else:
                tokens, h = definition_layer(layer, network.cells[0], tokens, h, extra)
        if network.final_norm:
            tokens = network.ln1(tokens)
        expected = network._format_output(tokens, hw)
        (actual,) = network(x)
    assert actual.std() > 0
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('out_type', 'with_cls_token'), OUT_TYPES)
@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 3])
def test_every_trainable_parameter_gets_a_gradient(out_type, with_cls_token, frozen_stages):
    network = build(out_type=out_type, with_cls_token=bool(with_cls_token), frozen_stages=frozen_stages)
    assert_trainable_get_gradients(network, images())


@pytest.mark.parametrize('size', [(16, 16), (19, 33), (3, 40)])
@pytest.mark.parametrize('window_size', [2, 3])
def test_windowed_attention(size, window_size):
    """Layers in global_layers attend globally; a window larger than the map is no window at all."""
    plain = randomize(build(**NO_TOKEN)).eval()
    windowed = build(**NO_TOKEN, window_size=window_size, global_layers=(0, 3)).eval()
    windowed.load_state_dict(plain.state_dict())
    x = images(size=size)
    assert windowed.windowed == {1, 2}
    assert windowed(x)[0].shape == plain(x)[0].shape
    assert (windowed(x)[0] - plain(x)[0]).abs().max() > 1e-3
    windowed.window_size = 20
    torch.testing.assert_close(windowed(x), plain(x), rtol=1e-4, atol=1e-5)
    windowed.window_size = window_size
    assert_trainable_get_gradients(windowed, x)


@pytest.mark.parametrize(
    ('num_layers', 'expected'), [(12, {2, 5, 8, 11}), (24, {5, 11, 17, 23}), (4, {0, 1, 2, 3}), (2, {0, 1})]
)
def test_default_global_layers_are_those_of_vitdet(num_layers, expected):
    network = build(arch=ARCH | dict(num_layers=num_layers), **NO_TOKEN, window_size=2)
    assert set(range(num_layers)) - network.windowed == expected


def test_out_indices():
    everything = randomize(build(out_indices=(0, 1, 2, 3))).eval()
    outs = everything(images())
    assert len(outs) == 4
    for out_indices, chosen in [(-2, [2]), ((0, -1), [0, 3]), ([1], [1])]:
        some = build(out_indices=out_indices).eval()
        some.load_state_dict(everything.state_dict())
        torch.testing.assert_close(some(images()), tuple(outs[i] for i in chosen))


@pytest.mark.parametrize('options', [dict(), NO_TOKEN | dict(window_size=3, global_layers=[1])], ids=str)
def test_with_cp_changes_nothing_but_memory(options):
    assert_with_cp_changes_nothing(build(**options), build(**options, with_cp=True), images())


@pytest.mark.parametrize('options', [dict(), dict(out_type='cls_token'), NO_TOKEN | dict(window_size=3)], ids=str)
def test_bf16_autocast(options):
    assert_bf16_autocast_is_close(build(arch=ARCH | dict(embed_dims=64), **options), images())


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 4])
def test_frozen_stages(frozen_stages):
    network = randomize(build(frozen_stages=frozen_stages, drop_rate=0.1))
    names = ('cls_token', 'pos_embed', 'patch_embed.', 'cells.', 'initial_state')
    names += tuple(f'layers.{i}.' for i in range(frozen_stages)) + (('ln1.',) if frozen_stages == 4 else ())
    graph = []
    for i, layer in enumerate(network.layers):
        layer.register_forward_hook(lambda module, args, out, i=i: graph.append(i) if out.requires_grad else None)
    for mode in (True, False, True):
        network.train(mode)
        for name, parameter in network.named_parameters():
            assert parameter.requires_grad == (frozen_stages < 1 or not name.startswith(names)), name
        for i, layer in enumerate(network.layers):
            assert layer.training == (mode and i >= frozen_stages)
    network(images())
    assert graph == list(range(max(frozen_stages, 0), 4))  # frozen layers need no backward pass


def test_layer_depth():
    """Of the new parameters; what the base class knows keeps its depth."""
    network, plain = build(), VisionTransformer(**TINY, out_type='featmap')
    for name, _ in network.named_parameters():
        depth = network.get_layer_depth(f'backbone.{name}', 'backbone.')
        if not is_state_key(name):
            assert depth == plain.get_layer_depth(f'backbone.{name}', 'backbone.')
        elif name.endswith('read.weight'):
            assert depth == (int(name.split('.')[1]) + 1, 6)
        else:
            assert depth == (0 if name == 'initial_state' else 4, 6), name
    assert network.get_layer_depth('head.weight', 'backbone.') == (5, 6)


@pytest.mark.parametrize('init_cfg', [None, dict(type='TruncNormal', layer='Linear', std=2.0)])
def test_init_weights_leaves_the_state_parameters_to_s6la(init_cfg):
    torch.manual_seed(0)
    network = randomize(S6LAViT(**TINY, init_cfg=init_cfg))
    nn.init.zeros_(network.initial_state)
    before = network.layers[0].ffn.layers[1].weight.clone()
    Sequential(network, init_cfg=init_cfg).init_weights()
    assert network.layers[0].ffn.layers[1].weight.ne(before).any()
    assert_state_is_initialised(network)


def test_train_and_eval_return_self():
    network = build()
    assert network.train() is network and network.eval() is network


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmseg', 'mmpretrain'])
def test_builds_under_every_default_scope(scope):
    registry = MODELS if scope == 'mmengine' else pytest.importorskip(f'{scope}.registry').MODELS
    with DefaultScope.overwrite_default_scope(scope):
        assert type(registry.build(dict(type='S6LAViT', **TINY))) is S6LAViT


def test_package_without_mmpretrain(tmp_path):
    """It imports and registers; who asks for these backbones is told what to install."""
    code = (
        'import sys; sys.modules["mmpretrain"] = None\n'
        'from s6la_mm import backbones\n'
        'from mmengine.registry import MODELS\n'
        'swin = dict(type="S6LASwin")\n'
        'for ask in (lambda: backbones.S6LAViT, lambda: MODELS.build(swin), lambda: backbones.S6LANot):\n'
        '    try: ask()\n'
        '    except (ImportError, AttributeError) as error: print(error)'
    )
    process = Forked('-c', code, log=tmp_path / 'log')
    assert process.wait() == 0, process.output
    vit, swin, unknown = process.output.splitlines()
    for name, line in dict(S6LAViT=vit, S6LASwin=swin).items():
        assert line.startswith(f'{name} needs mmpretrain, which is not installed; pip ')
    assert unknown == "module 's6la_mm.backbones' has no attribute 'S6LANot'"


@pytest.mark.parametrize('arch', ['deit-tiny', 'deit-small', 'deit-base', 'base', 'large'])
def test_zoo(arch):
    """Names and sizes are the plain network's; S6LA adds one cell and one read per layer."""
    plain, s6la = (parameters_on_meta(c, arch=arch, out_type='featmap') for c in (VisionTransformer, S6LAViT))
    assert plain.items() <= s6la.items()
    new = {name: size for name, size in s6la.items() if name not in plain}
    assert all(is_state_key(name) for name in new)
    settings = VisionTransformer.arch_zoo[arch]
    D, N, L = settings['embed_dims'], 16, settings['num_layers']
    # h⁰; per layer W_C; W_Δ, W_B, A, b_Δ and the norm's gain.
    assert sum(new.values()) == N + L * N * D + D * D + 2 * N * D + 2 * D
    assert sum(new.values()) < 0.02 * sum(plain.values())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='deit'), "arch='deit'.*deit-tiny"),
        (dict(arch=dict(embed_dims=8)), 'arch=.*num_layers'),
        (dict(arch=ARCH | dict(num_layers=1), out_type='cls_token'), "num_layers=1.*out_type='cls_token'"),
        (dict(out_type='map'), "out_type='map'.*featmap"),
        (dict(out_type='cls_token', with_cls_token=False), "with_cls_token=False.*out_type='cls_token'"),
        (dict(out_indices=[4]), r'out_indices=\[4\].*from -4 to 3'),
        (dict(out_indices=[]), r'out_indices=\[\].*one or more'),
        (dict(frozen_stages=5), 'frozen_stages=5.*-1 to 4'),
        (dict(window_size=7), 'window_size=7.*with_cls_token=True.*False'),
        (dict(window_size=0, with_cls_token=False), 'window_size=0.*positive'),
        (dict(global_layers=[1]), r'global_layers=\[1\].*window_size'),
        (dict(global_layers=[4], window_size=2, with_cls_token=False), r'global_layers=\[4\].*0 to 3'),
        (dict(state_dim=0), 'state_dim=0.*positive integer'),
        (dict(discretization='exact'), "discretization='exact'.*euler"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
