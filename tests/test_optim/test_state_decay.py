"""No weight decay on the state: the optimizer's groups, and the warning where another constructor made them."""

from __future__ import annotations

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn
from toy_runner import ToyModel, build

from s6la_mm.backbones import MRLAResNet, RLAResNet, S6LAPVTv2
from s6la_mm.layers import S6LAMapCell, S6LATokenCell
from s6la_mm.optim import undecayed_parameters

STATE = ('A_log', 'dt_bias', 'initial_state', 'input_norm.weight')
CONSTRUCTOR = 'S6LAOptimWrapperConstructor'


def settings(model: nn.Module, constructor: str | None = CONSTRUCTOR, **more) -> dict[str, dict]:
    """What the optimizer that a config describes does with each parameter that learns."""
    cfg = dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1)) | more
    wrapper = build_optim_wrapper(model, cfg | (dict(constructor=constructor) if constructor else {}))
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    groups = wrapper.optimizer.param_groups
    return {
        names[id(p)]: {key: value for key, value in group.items() if key != 'params'}
        for group in groups
        for p in group['params']
        if id(p) in names
    }


@pytest.mark.parametrize('layer', [S6LAMapCell(8, 4), S6LATokenCell(8, 4)])
def test_layers_name_what_must_not_decay(layer):
    named = dict(layer.named_parameters())
    wanted = [named[name] for name in ('A_log', 'dt_bias', 'input_norm.weight')]
    assert [id(p) for p in undecayed_parameters(layer)] == [id(p) for p in wanted]
    assert all(p.requires_grad for p in undecayed_parameters(type(layer)(8, 4, input_norm=None)))
    assert len(list(undecayed_parameters(type(layer)(8, 4, input_norm=None)))) == 2


@pytest.mark.parametrize(
    'paramwise',
    [
        None,
        dict(norm_decay_mult=0.0, bias_lr_mult=2.0),
        dict(custom_keys={'backbone': dict(lr_mult=0.1), 'A_log': dict(decay_mult=3.0, lr_mult=0.5)}),
    ],
)
def test_the_state_does_not_decay_and_the_rest_is_mmengines(paramwise):
    model = ToyModel()
    model.backbone.conv1.weight.requires_grad_(False)
    found = settings(model, paramwise_cfg=paramwise)
    expected = settings(model, None, paramwise_cfg=paramwise)
    assert 'backbone.conv1.weight' not in found
    assert sum(name.endswith(STATE) for name in expected) == 13  # four cells
    for name, group in expected.items():
        if name.endswith(STATE):
            group['weight_decay'] = 0.0
    assert found == expected


def test_a_decay_that_only_the_optimizer_knows():
    """AdamW's own default is 0.01."""
    found = settings(ToyModel(), optimizer=dict(type='AdamW', lr=1.0))
    assert {group['weight_decay'] for name, group in found.items() if name.endswith(STATE)} == {0.0}
    assert found['head.weight']['weight_decay'] == 0.01


@pytest.mark.parametrize('kind', [RLAResNet, MRLAResNet])
def test_relatives_have_no_such_parameters(kind):
    model = kind(18, base_channels=32)
    assert not list(undecayed_parameters(model))
    assert settings(model) == settings(model, None)


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    """What is logged about weight decay."""
    found: list[str] = []
    monkeypatch.setattr('s6la_mm.optim.state_decay.print_log', lambda text, **_: found.append(text))
    return found


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor) -> None:
    optimizer.zero_grad()
    sum(out.square().mean() for out in model(images)).backward()
    optimizer.step()


@pytest.mark.parametrize(
    ('wrapper', 'number'),
    [
        (dict(), 1),
        (dict(constructor=CONSTRUCTOR), 0),
        (dict(paramwise_cfg=dict(custom_keys={key: dict(decay_mult=0.0) for key in STATE})), 0),
        (dict(optimizer=dict(type='SGD', lr=1e-3)), 0),
    ],
)
def test_a_training_that_decays_the_state_says_so_once(tmp_path, warnings, wrapper, number):
    """With mmengine's own runner and hooks; what the config of others has is enough."""
    optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05)) | wrapper
    build(tmp_path, optim_wrapper=optim_wrapper, checkpoint=dict(type='CheckpointHook')).train()
    assert len(warnings) == number
    if number:
        assert 'pulls on 13 parameters of the state of S6LAResNet' in warnings[0] and CONSTRUCTOR in warnings[0]


def test_warning_of_a_plain_loop(warnings):
    """Frozen parameters have no gradient and so no decay; other models' optimizers say nothing of this one."""
    model = S6LAPVTv2('b0', embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 1, 1, 1])
    images = torch.rand(1, 3, 32, 32)
    other = nn.Linear(2, 2)
    other(torch.rand(1, 2)).sum().backward()
    torch.optim.AdamW(other.parameters()).step()
    model.cells[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        step(model, optimizer, images)
    assert len(warnings) == 1 and 'pulls on 10 parameters of the state of S6LAPVTv2' in warnings[0]
