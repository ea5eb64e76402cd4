"""A batch that gives NaN costs its step, not the weights; many in a row end the run with what is known."""

from __future__ import annotations

import pytest
import torch
from mmengine.hooks import Hook
from releases import load
from toy_runner import ToyModel, build

from s6la_mm.common.errors import UsageError
from s6la_mm.engine import NonFiniteHook, find_last_good
from s6la_mm.engine.hooks.checkpoint import first_non_finite
from s6la_mm.engine.hooks.nonfinite import find_non_finite


class Snapshots(Hook):
    """Keeps the weights, the momenta and the statistics before each iteration."""

    def __init__(self) -> None:
        self.taken: list[dict] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        optimizer = runner.optim_wrapper.optimizer
        momenta = {f'momentum {i}': s['exp_avg'].clone() for i, s in enumerate(optimizer.state.values())}
        floats = {n: v.clone() for n, v in runner.model.state_dict().items() if v.is_floating_point()}
        self.taken.append(floats | momenta)


def test_a_single_bad_image_costs_its_steps_only(tmp_path):
    snapshots = Snapshots()
    runner = build(tmp_path, dataset=dict(poison=5), hooks=[NonFiniteHook(), snapshots])
    runner.train()
    unchanged = [
        all(torch.equal(value, after[name]) for name, value in before.items())
        for before, after in zip(snapshots.taken[1:], snapshots.taken[2:])
    ]
    assert 2 <= unchanged.count(True) <= 3  # in every epoch one batch; the first has no momenta to compare
    assert first_non_finite(runner.model) is None and runner.iter == 9


def test_without_the_hook_that_image_spoils_the_run(tmp_path):
    with pytest.raises(UsageError, match='is not finite'):  # from the checkpoint hook
        build(tmp_path, dataset=dict(poison=5)).train()


def test_bad_iterations_in_a_row_stop_the_run(tmp_path):
    class Spoil(Hook):
        """A write that overflows from the fifth iteration on."""

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 4:
                cell = runner.model.backbone.cells.layer2
                cell.register_forward_pre_hook(lambda cell, args: (args[0], args[1] * float('inf'), *args[2:]))

    with pytest.raises(UsageError) as stop:
        build(tmp_path, hooks=[NonFiniteHook(max_consecutive=2), Spoil()]).train()
    text = str(stop.value)
    assert '2 iterations in a row' in text and 'iteration 6' in text and 'loss nan' in text
    assert 'image_' in text and '.jpg' in text
    assert 'is backbone.cells.layer2, at write 1: its new state is not finite' in text
    kept = find_last_good(str(tmp_path))
    assert kept in text and kept.endswith('before_nonfinite_iter_6.pth')
    assert all(v.isfinite().all() for v in load(kept)['state_dict'].values())


def test_first_stage_is_named():
    model = ToyModel()
    batch = dict(inputs=[torch.rand(3, 24, 24) for _ in range(2)])
    assert 'it begins in the neck, the heads or the loss' in find_non_finite(model, batch)
    model.backbone.layer3[0].conv1.weight.data[0] = float('nan')
    # The first write of stage 3 gets what its first block has computed.
    assert 'backbone.cells.layer3, at write 1: its input is not finite' in find_non_finite(model, batch)
    batch['inputs'][1][0, 0, 0] = float('inf')
    assert 'images themselves' in find_non_finite(model, batch)


def test_the_reason_of_the_stop_survives_a_model_that_cannot_be_looked_into():
    assert 'could not be found (AttributeError' in find_non_finite(torch.nn.Linear(1, 1), {})


def test_max_consecutive_is_checked():
    with pytest.raises(ValueError, match='max_consecutive=0 is not allowed'):
        NonFiniteHook(max_consecutive=0)


def accumulating(counts: int) -> dict:
    return dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2), accumulative_counts=counts)


def test_accumulated_gradients_that_are_bad_cost_one_step(tmp_path):
    """One image spoils a step of three iterations; the batch norm of none of them keeps it."""
    runner = build(tmp_path, dataset=dict(poison=5), hooks=[NonFiniteHook()], optim_wrapper=accumulating(3))
    runner.train()
    assert first_non_finite(runner.model) is None and runner.iter == 9


def test_bad_steps_of_accumulated_gradients_stop_the_run(tmp_path):
    """The iterations between two steps neither count nor begin the count anew."""

    class Spoil(Hook):
        """Gradients that overflow while the losses are finite."""

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 0:
                runner.model.head.weight.register_hook(lambda grad: grad * float('inf'))

    with pytest.raises(UsageError, match=r'2 iterations in a row .* iteration 6'):
        build(tmp_path, hooks=[NonFiniteHook(max_consecutive=2), Spoil()], optim_wrapper=accumulating(3)).train()
