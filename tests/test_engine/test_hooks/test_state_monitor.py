"""The curves are those of the formula, and appear where the visualizers put them."""

from __future__ import annotations

import json

import pytest
import torch
from toy_runner import ToyModel, build

from s6la_mm.engine import StateMonitorHook
from s6la_mm.layers import S6LAMapCell, S6LATokenCell
from s6la_mm.layers.probes import watch_cells


def read(folder) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for path in folder.rglob('scalars.json') for line in path.read_text().splitlines()]
    return {line['step']: line for line in lines if any(key.startswith('s6la/') for key in line)}


def test_curves_of_every_stage_at_the_interval(tmp_path):
    build(tmp_path, hooks=[StateMonitorHook(interval=4)]).train()
    curves = read(tmp_path)
    assert sorted(curves) == [4, 8]
    for line in curves.values():
        for stage in ('layer1', 'layer2', 'layer3', 'layer4'):
            low, mean, high = (line[f's6la/{stage}/delta_{what}'] for what in ('min', 'mean', 'max'))
            assert 0 < low < mean < high
            assert 0 < line[f's6la/{stage}/decay'] < 1 and line[f's6la/{stage}/state_rms'] > 0


def test_numbers_are_those_of_the_writes(tmp_path):
    """The hook's numbers against the cells' own, taken in the same iteration."""
    model, seen = ToyModel(), {}

    def note(name, cell, x, h):
        if model.training:
            delta, decay = cell.gates(x)
            seen.setdefault(name, []).append((h.square().mean().sqrt(), delta.min(), delta.max(), decay.mean()))

    watch_cells(model, note)
    build(tmp_path, model=model, epochs=False, hooks=[StateMonitorHook(interval=9)]).train()
    curves = read(tmp_path)[9]
    for stage in ('layer1', 'layer4'):
        writes = seen[f'backbone.cells.{stage}']
        last = torch.tensor(writes[-len(writes) // 9 :])  # of the ninth iteration
        expected = dict(
            state_rms=last[-1, 0], delta_min=last[:, 1].min(), delta_max=last[:, 2].max(), decay=last[:, 3].mean()
        )
        for key, value in expected.items():
            assert curves[f's6la/{stage}/{key}'] == pytest.approx(float(value), rel=1e-5)


def test_nothing_stays_behind(tmp_path):
    runner = build(tmp_path, hooks=[StateMonitorHook(interval=1)])
    runner.train()
    cells = [m for m in runner.model.modules() if isinstance(m, S6LAMapCell)]
    assert cells and not any(cell._forward_hooks for cell in cells)


@pytest.mark.parametrize('input_norm', ['rms', None])
def test_gates_of_the_map_cell_are_those_of_the_update(input_norm):
    """With B = 0 the update is h' = exp(Δ A) h, in float64."""
    cell = S6LAMapCell(6, 4, input_norm=input_norm).double()
    torch.nn.init.zeros_(cell.B_proj.weight)
    x, h = torch.randn(2, 6, 3, 5, dtype=torch.float64), torch.randn(2, 4, 3, 5, dtype=torch.float64)
    delta, decay = cell.gates(x)
    torch.testing.assert_close(cell(x, h), decay * h, rtol=1e-9, atol=0)
    torch.testing.assert_close(decay, torch.exp(-cell.A_log.exp().view(-1, 1, 1) * delta))


@pytest.mark.parametrize('input_norm', ['rms', None])
def test_gates_of_the_token_cell_are_those_of_the_update(input_norm):
    cell = S6LATokenCell(6, 4, input_norm=input_norm).double()
    torch.nn.init.zeros_(cell.B_proj.weight)
    o, h = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 6, 4, dtype=torch.float64)
    delta, decay = cell.gates(o)
    assert delta.shape == (2, 6)
    torch.testing.assert_close(cell(o, h), decay * h, rtol=1e-9, atol=0)


def test_interval_is_checked():
    with pytest.raises(ValueError, match='interval=0 is not allowed'):
        StateMonitorHook(interval=0)
