"""S6LASwin: the plain network with reads at zero, the definition with reads that read, and its options."""

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
from mmengine.model import BaseModule, Sequential
from mmengine.registry import MODELS, DefaultScope
from torch import nn

SwinTransformer = pytest.importorskip('mmpretrain.models').SwinTransformer
from s6la_mm.backbones import S6LASwin  # noqa: E402

ARCH = dict(embed_dims=8, depths=[2, 1, 2], num_heads=[1, 2, 4])
TINY = dict(arch=ARCH, img_size=32, window_size=3, drop_path_rate=0.0, pad_small_map=True, out_indices=(0, 1, 2))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """init_weights of a root module logs one line per parameter."""
    monkeypatch.setattr(BaseModule, '_dump_init_info', lambda self: None)


def build(**options):
    return S6LASwin(**copy.deepcopy(TINY) | dict(state_dim=4) | options)


@pytest.mark.parametrize('size', [(32, 32), (37, 50), (1, 40)])
@pytest.mark.parametrize('carry', [True, False])
def test_reads_at_zero_give_the_plain_network(size, carry):
    assert_neutral(*build_pair(SwinTransformer, S6LASwin, TINY, carry=carry), images(size=size))


@pytest.mark.parametrize(
    'options',
    [
        dict(out_after_downsample=True),
        dict(use_abs_pos_embed=True, out_indices=(2,)),
        dict(pad_small_map=False, window_size=2),
        dict(stage_cfgs=dict(downsample_cfg=dict(kernel_size=3, stride=2, padding=1))),
        dict(patch_size=2, norm_cfg=None, arch=ARCH | dict(depths=[1, 2], num_heads=[2, 2]), out_indices=[0, 1]),
    ],
    ids=str,
)
def test_options_of_the_base_class_give_the_plain_network(options):
    assert_neutral(*build_pair(SwinTransformer, S6LASwin, TINY | options), images(size=(37, 50)))


@pytest.mark.parametrize('size', [(32, 32), (37, 50)])
@pytest.mark.parametrize('options', [dict(), dict(carry=False), dict(discretization='zoh', input_norm=None)], ids=str)
def test_network_equals_its_definition(size, options):
    """The mean runs over the tokens of the map, never over what windows are padded with."""
    network = randomize(build(**options)).eval()
    with torch.no_grad():
        x, hw = network.patch_embed(images(size=size))
        for i, stage in enumerate(network.stages):
            if i == 0 or not options.get('carry', True):
                h = network.initial_state.repeat(2, stage.embed_dims, 1)
            else:
                h = torch.einsum('ed,bdn->ben', network.carries[i - 1].weight, h)
            for block in stage.blocks:
                x, h = definition_layer(block, network.cells[i], x, h, 0, hw)
            expected = getattr(network, f'norm{i}')(x).transpose(1, 2).view(2, -1, *hw)
            actual = network(images(size=size))[i]
            assert actual.std() > 0
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
            if stage.downsample:
                x, hw = stage.downsample(x, hw)


@pytest.mark.parametrize('carry', [True, False])
@pytest.mark.parametrize('frozen_stages', [-1, 0, 1])
def test_every_trainable_parameter_gets_a_gradient(carry, frozen_stages):
    assert_trainable_get_gradients(build(carry=carry, frozen_stages=frozen_stages), images(size=(37, 50)))


def test_with_cp_changes_nothing_but_memory():
    assert_with_cp_changes_nothing(build(), build(with_cp=True), images(size=(37, 50)))


def test_bf16_autocast():
    assert_bf16_autocast_is_close(build(arch=ARCH | dict(embed_dims=32)), images(size=(37, 50)))


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2])
def test_frozen_stages(frozen_stages):
    network = randomize(build(frozen_stages=frozen_stages))
    names = ('patch_embed.', 'initial_state') if frozen_stages >= 0 else ('none',)
    names += tuple(f'{part}{i}.' for part in ('stages.', 'cells.', 'norm') for i in range(frozen_stages + 1))
    names += tuple(f'carries.{i}.' for i in range(frozen_stages))
    graph = set()
    for i, stage in enumerate(network.stages):
        for block in stage.blocks:
            block.register_forward_hook(lambda module, args, out, i=i: graph.add(i) if out.requires_grad else None)
    for mode in (True, False, True):
        assert network.train(mode) is network
        for name, parameter in network.named_parameters():
            assert parameter.requires_grad == (not name.startswith(names)), name
        assert all(stage.training == (mode and i > frozen_stages) for i, stage in enumerate(network.stages))
    network(images(size=(32, 32)))
    assert graph == set(range(frozen_stages + 1, 3))  # frozen stages need no backward pass


def test_layer_depth():
    """Of the new parameters; what the base class knows keeps its depth. Blocks have the depths 1 to 5."""
    network, plain = build(), SwinTransformer(**TINY)
    for name, _ in network.named_parameters():
        depth = network.get_layer_depth(f'backbone.{name}', 'backbone.')
        if is_state_key(name) and not name.startswith('stages'):
            part, _, rest = name.partition('.')
            expected = 0 if part == 'initial_state' else (2, 3, 5)[int(rest[0])]
            assert depth == (expected, 7), name
        else:
            assert depth == plain.get_layer_depth(f'backbone.{name}', 'backbone.')
    assert network.get_layer_depth('backbone.stages.2.blocks.0.read.weight', 'backbone.') == (4, 7)
    assert network.get_layer_depth('head.weight', 'backbone.') == (6, 7)


def test_init_weights_leaves_the_state_parameters_to_s6la():
    init_cfg = dict(type='TruncNormal', layer='Linear', std=2.0)
    network = randomize(build(init_cfg=init_cfg))
    nn.init.zeros_(network.initial_state)
    Sequential(network, init_cfg=init_cfg).init_weights()
    assert network.stages[0].blocks[0].ffn.layers[1].weight.std() > 1
    assert_state_is_initialised(network)


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmseg', 'mmpretrain'])
def test_builds_under_every_default_scope(scope):
    registry = MODELS if scope == 'mmengine' else pytest.importorskip(f'{scope}.registry').MODELS
    with DefaultScope.overwrite_default_scope(scope):
        assert type(registry.build(dict(type='S6LASwin', **TINY))) is S6LASwin


@pytest.mark.parametrize('arch', ['tiny', 'small', 'base', 'large'])
def test_zoo(arch):
    """Names and sizes are the plain network's; S6LA adds cells, reads and the maps between stages."""
    plain, s6la = (parameters_on_meta(c, arch=arch) for c in (SwinTransformer, S6LASwin))
    assert plain.items() <= s6la.items()
    new = {name: size for name, size in s6la.items() if name not in plain}
    assert all(is_state_key(name) for name in new)
    settings = SwinTransformer.arch_zoo[arch]
    dims, N = [settings['embed_dims'] * 2**i for i in range(4)], 16
    expected = N + sum(a * b for a, b in zip(dims, dims[1:]))
    expected += sum(depth * N * D + D * D + 2 * N * D + 2 * D for D, depth in zip(dims, settings['depths']))
    assert sum(new.values()) == expected < 0.05 * sum(plain.values())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='huge'), "arch='huge'.*tiny"),
        (dict(arch=dict(embed_dims=8)), 'arch=.*depths'),
        (dict(out_indices=(3,)), r'out_indices=\(3,\).*0 to 2'),
        (dict(out_indices=()), r'out_indices=\(\).*one or more'),
        (dict(frozen_stages=3), 'frozen_stages=3.*-1 to 2'),
        (dict(state_dim=-1), 'state_dim=-1.*positive integer'),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_image_that_is_smaller_than_a_window():
    with pytest.raises(ValueError, match=r'37 x 50 pixels.*5 x 7 tokens.*window_size=6.*pad_small_map=True'):
        build(pad_small_map=False, window_size=6)(images(size=(37, 50)))
