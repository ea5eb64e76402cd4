"""What must hold for every family of backbones, and that nothing outside of a family's files names it."""

from __future__ import annotations

import ast
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
    images,
    is_state_key,
    randomize,
)
from mmengine.config import Config
from mmengine.model import BaseModule, Sequential
from mmengine.registry import MODELS, DefaultScope
from tool_runner import ROOT
from torch import nn

pytest.importorskip('mmpretrain')

from s6la_mm import backbones
from s6la_mm.backbones.architectures import architectures, on_meta_device
from s6la_mm.backbones.families import FAMILIES
from s6la_mm.common.configs import plain_config

SIZES = [(64, 64), (70, 101), (32, 333)]  # of images; the last one has deepest maps of one row

pytestmark = pytest.mark.parametrize('family', FAMILIES, ids=lambda family: family.name)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """init_weights of a root module logs one line per parameter."""
    monkeypatch.setattr(BaseModule, '_dump_init_info', lambda self: None)


def build(family, **options) -> nn.Module:
    torch.manual_seed(0)
    return family.load()(**copy.deepcopy(family.small), state_dim=4, **options)


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_reads_at_zero_give_the_plain_network(family, size):
    assert_neutral(*build_pair(family.load_plain(family.small), family.load(), family.small), images(size=size))


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_every_trainable_parameter_gets_a_gradient(family, size):
    assert_trainable_get_gradients(build(family), images(size=size))


def test_with_cp_changes_nothing_but_memory(family):
    assert_with_cp_changes_nothing(build(family), build(family, with_cp=True), images(size=(70, 101)))


def test_bf16_autocast(family):
    assert_bf16_autocast_is_close(build(family), images(size=(64, 64)))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_cast_network(family, dtype):
    network, x = randomize(build(family)).eval(), images(size=(64, 64))
    plain = family.load_plain(family.small)(**copy.deepcopy(family.small)).to(dtype)
    with torch.no_grad():
        try:
            plain(x.to(dtype))
        except RuntimeError as error:
            pytest.skip(f'with torch {torch.__version__} the plain network cannot either: {error}')
        expected = network(x)
        outs = network.to(dtype)(x.to(dtype))
    for out, e in zip(outs, expected):
        assert out.dtype == dtype
        assert (out.double() - e).norm() < (1e-5 if dtype is torch.float64 else 0.1) * e.norm()


def test_channels_last(family):
    network = randomize(build(family)).eval()
    x = images(size=(70, 101))
    with torch.no_grad():
        expected = network(x)
        outs = network.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(outs, expected, rtol=1e-4, atol=1e-4)


def test_no_state_is_kept_between_calls(family):
    """The images of a batch have states of their own, and nothing of a call is left on a module."""
    network = randomize(build(family)).eval()
    x = images(size=(64, 64))
    first = network(x)
    attributes = {name: set(vars(module)) for name, module in network.named_modules()}
    network(images(3, size=(96, 64), seed=1))
    assert attributes == {name: set(vars(module)) for name, module in network.named_modules()}
    torch.testing.assert_close(copy.deepcopy(network)(x), first, rtol=0, atol=0)
    each = [network(x[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(tuple(torch.cat(outs) for outs in zip(*each)), first, rtol=1e-4, atol=1e-5)


def test_init_weights_leaves_the_state_parameters_to_s6la(family):
    """A parent's init_cfg reaches all layers of its types, before those of S6LA have the last word."""
    network = randomize(build(family))
    nn.init.zeros_(network.initial_state)
    init_cfg = dict(type='TruncNormal', layer=['Linear', 'Conv2d'], std=2.0)
    Sequential(network, init_cfg=init_cfg).init_weights()
    assert_state_is_initialised(network)


def test_plain_checkpoint_loads_through_init_cfg(family, tmp_path):
    plain = randomize(family.load_plain(family.small)(**copy.deepcopy(family.small)))
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / 'plain.pth')
    network = build(family, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'plain.pth')))
    network.init_weights()
    state = network.state_dict()
    assert all(state[key].equal(tensor) for key, tensor in plain.state_dict().items())
    assert_state_is_initialised(network)


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmseg', 'mmpretrain'])
def test_builds_under_every_default_scope(family, scope):
    registry = MODELS if scope == 'mmengine' else pytest.importorskip(f'{scope}.registry').MODELS
    with DefaultScope.overwrite_default_scope(scope):
        network = registry.build(dict(type=family.name, **family.small))
    assert type(network) is family.load() is getattr(backbones, family.name)
    assert network.train() is network and network.eval() is network


def test_layer_depths_are_in_order(family):
    """In layer-wise decay a read is as deep as its block, and a cell as the last block that it serves."""
    network = build(family)
    if not hasattr(network, 'get_layer_depth'):
        return
    depths = {name: network.get_layer_depth(f'backbone.{name}', 'backbone.') for name, _ in network.named_parameters()}
    assert len({number for _, number in depths.values()}) == 1
    reads = [depth for name, (depth, _) in depths.items() if name.endswith('.read.weight')]
    cells = [depth for name, (depth, _) in depths.items() if name.startswith('cells.')]
    assert depths['initial_state'][0] == 0 < reads[0] and reads == sorted(reads) and cells == sorted(cells)
    assert reads[0] <= cells[0] and cells[-1] == reads[-1] < depths['initial_state'][1] - 1


def test_plain_config(family):
    cfg = Config(dict(model=dict(backbone=dict(type=family.name, **copy.deepcopy(family.small), state_dim=4))))
    plain, left_out = plain_config(cfg)
    keys = MODELS.build(plain.model.backbone).state_dict().keys()
    assert not left_out and keys == {key for key in build(family).state_dict() if not is_state_key(key)}
    assert not any(key in plain.model.backbone for key in family.load().state_options)


def test_wrong_option_of_the_state(family):
    with pytest.raises(ValueError, match='state_dim=0 is not allowed: it must be a positive integer'):
        family.load()(**copy.deepcopy(family.small), state_dim=0)


def test_sizes(family):
    """Each builds and computes, and has the channels that the table says."""
    for size in family.sizes:
        row = architectures()[size.name]
        with on_meta_device(), torch.no_grad():
            for cls in (row.plain, row.s6la):
                assert cls(**row.options)(torch.empty(1, 3, 224, 224))[-1].shape[1] == size.channels


def test_nothing_else_names_the_family(family):
    """Neither the package nor the tools list classes: they ask the table. Text of docstrings may name them."""
    own = {f'backbones/{family.module}.py', f'backbones/families/{family.module.removeprefix("s6la_")}.py'}
    for folder in ('s6la_mm', 'tools', '.dev_scripts'):
        for path in (ROOT / folder).rglob('*.py'):
            if str(path.relative_to(ROOT / folder)) in own | {'backbones/__init__.py'}:
                continue
            names = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
            names |= {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
            assert family.name not in names, path
