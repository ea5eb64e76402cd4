"""S6LAPVTv2: the plain network with reads at zero, the definition with reads that read, and its options."""

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
from mmdet.models.backbones import PyramidVisionTransformerV2
from mmengine.hub import get_config
from mmengine.model import BaseModule, Sequential
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from s6la_mm.backbones import S6LAPVTv2

TINY = dict(
    embed_dims=8,
    num_layers=[2, 1, 2, 1],
    num_heads=[1, 2, 2, 4],
    sr_ratios=[4, 2, 1, 1],
    mlp_ratios=[2, 2, 2, 2],
    drop_path_rate=0.0,
)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """init_weights of a root module logs one line per parameter."""
    monkeypatch.setattr(BaseModule, '_dump_init_info', lambda self: None)


def build(**options):
    return S6LAPVTv2(**copy.deepcopy(TINY) | dict(state_dim=4) | options)


@pytest.mark.parametrize('size', [(32, 32), (37, 50), (13, 70)])
@pytest.mark.parametrize('carry', [True, False])
def test_reads_at_zero_give_the_plain_network(size, carry):
    assert_neutral(*build_pair(PyramidVisionTransformerV2, S6LAPVTv2, TINY, carry=carry), images(size=size))


@pytest.mark.parametrize(
    'options',
    [dict(out_indices=[0, 3]), dict(qkv_bias=False, norm_cfg=dict(type='LN', eps=1e-3)), dict(strides=[4, 1, 2, 1])],
    ids=str,
)
def test_options_of_the_base_class_give_the_plain_network(options):
    assert_neutral(*build_pair(PyramidVisionTransformerV2, S6LAPVTv2, TINY | options), images(size=(37, 50)))


@pytest.mark.parametrize('options', [dict(), dict(carry=False), dict(discretization='zoh', input_norm=None)], ids=str)
def test_network_equals_its_definition(options):
    network = randomize(build(**options)).eval()
    with torch.no_grad():
        x, outs = images(size=(37, 50)), network(images(size=(37, 50)))
        for i, (patch_embed, blocks, norm) in enumerate(network.layers):
            x, hw = patch_embed(x)
            if i == 0 or not options.get('carry', True):
                h = network.initial_state.repeat(2, x.shape[2], 1)
            else:
                h = torch.einsum('ed,bdn->ben', network.carries[i - 1].weight, h)
            for block in blocks:
                x, h = definition_layer(block, network.cells[i], x, h, 0, hw)
            x = norm(x).transpose(1, 2).view(2, -1, *hw)
            assert outs[i].std() > 0
            torch.testing.assert_close(outs[i], x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('carry', [True, False])
def test_every_parameter_gets_a_gradient(carry):
    assert_trainable_get_gradients(build(carry=carry), images(size=(37, 50)))


def test_with_cp_changes_nothing_but_memory():
    assert_with_cp_changes_nothing(build(), build(with_cp=True), images(size=(37, 50)))


def test_bf16_autocast():
    assert_bf16_autocast_is_close(build(embed_dims=32), images(size=(37, 50)))


def test_init_weights_is_mmdets_and_leaves_the_state_parameters_to_s6la():
    network = randomize(build())
    nn.init.zeros_(network.initial_state)
    Sequential(network, init_cfg=dict(type='TruncNormal', layer='Linear', std=2.0)).init_weights()
    assert network.layers[0][1][0].attn.attn.out_proj.weight.abs().max() < 0.1  # truncated normal of std 0.02
    assert_state_is_initialised(network)


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmseg', 'mmpretrain'])
def test_builds_under_every_default_scope(scope):
    registry = MODELS if scope == 'mmengine' else pytest.importorskip(f'{scope}.registry').MODELS
    with DefaultScope.overwrite_default_scope(scope):
        network = registry.build(dict(type='S6LAPVTv2', **TINY))
    assert type(network) is S6LAPVTv2
    assert network.train() is network and network.eval() is network


@pytest.mark.parametrize('arch', S6LAPVTv2.arch_zoo)
def test_zoo(arch):
    """Names and sizes are the plain network's; S6LA adds cells, reads and the maps between stages."""
    plain = parameters_on_meta(PyramidVisionTransformerV2, **S6LAPVTv2.arch_zoo[arch])
    s6la = parameters_on_meta(S6LAPVTv2, arch=arch)
    assert plain.items() <= s6la.items()
    new = {name: size for name, size in s6la.items() if name not in plain}
    assert all(is_state_key(name) for name in new)
    settings = S6LAPVTv2.arch_zoo[arch]
    dims, N = [settings['embed_dims'] * heads for heads in (1, 2, 5, 8)], 16
    expected = N + sum(a * b for a, b in zip(dims, dims[1:]))
    expected += sum(depth * N * D + D * D + 2 * N * D + 2 * D for D, depth in zip(dims, settings['num_layers']))
    assert sum(new.values()) == expected < 0.06 * sum(plain.values())


@pytest.mark.parametrize('arch', S6LAPVTv2.arch_zoo)
def test_zoo_is_that_of_mmdets_configs(arch):
    config = get_config(f'mmdet::pvt/retinanet_pvtv2-{arch}_fpn_1x_coco.py').model.backbone
    defaults = dict(embed_dims=64, num_layers=[3, 4, 6, 3], mlp_ratios=[8, 8, 4, 4])
    ours = defaults | S6LAPVTv2.arch_zoo[arch]
    for key, default in defaults.items():
        assert ours[key] == (default if key not in config else config[key] if key == 'embed_dims' else [*config[key]])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='b6'), "arch='b6'.*b5"),
        (dict(out_indices=(4,)), r'out_indices=\(4,\).*0 to 3'),
        (dict(init_cfg=dict(type='Normal', layer='Linear', std=1)), 'init_cfg=.*Pretrained'),
        (dict(state_dim=0), 'state_dim=0.*positive integer'),
        (dict(num_layers=[1, 1]), r'S6LAPVTv2 cannot be built with .*num_layers=\[1, 1\].*AssertionError'),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_image_that_is_too_small():
    with pytest.raises(ValueError, match=r'9 x 50 pixels.*3 x 13 tokens.*stage 0.*sr_ratios\[0\]=4'):
        build()(images(size=(9, 50)))
