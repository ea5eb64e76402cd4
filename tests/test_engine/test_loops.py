"""Resuming at any iteration gives the weights of a run that was not interrupted, bit by bit."""

from __future__ import annotations

import json

import pytest
import torch
from mmengine.hooks import Hook
from releases import load
from toy_runner import Killed, ToyModel, build

from s6la_mm.engine import find_last_good


class KillAt(Hook):
    """Ends the run where a kill would, after checkpoints were written."""

    priority = 'LOWEST'

    def __init__(self, iteration: int | None = None, in_evaluation: int | None = None) -> None:
        self.iteration = iteration
        self.in_evaluation = in_evaluation

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            raise Killed

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == self.in_evaluation:
            raise Killed


class Recorder(Hook):
    """Notes what each iteration got and gave."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.numbers: dict[int, list[int]] = {}
        self.evaluations: list[int] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses[runner.iter + 1] = outputs['loss'].item()
        self.numbers[runner.iter + 1] = list(data_batch['number'])

    def after_val_epoch(self, runner, metrics=None):
        self.evaluations.append(runner.iter)


def train(work_dir, **options) -> tuple[dict, Recorder, object]:
    recorder = Recorder()
    options['hooks'] = [*options.get('hooks', []), recorder]
    torch.manual_seed(0)
    runner = build(work_dir, **options)
    runner.train()
    return runner.model.state_dict(), recorder, runner


def train_until(work_dir, kill: KillAt, hooks=(), **options) -> Recorder:
    recorder = Recorder()
    torch.manual_seed(0)
    with pytest.raises(Killed):
        build(work_dir, **options, hooks=[*hooks, recorder, kill]).train()
    return recorder


def assert_same(state: dict, expected: dict) -> None:
    different = [name for name in expected if not torch.equal(state[name], expected[name])]
    assert not different


@pytest.fixture(scope='module', params=[True, False], ids=['epochs', 'iterations'])
def undisturbed(request, tmp_path_factory):
    state, recorder, _ = train(tmp_path_factory.mktemp('undisturbed'), epochs=request.param)
    return request.param, state, recorder


@pytest.mark.parametrize('iteration', [2, 3, 5, 6, 8])
def test_resume_at_any_iteration(undisturbed, tmp_path, iteration):
    """Of 9 iterations, 3 an epoch, every second one is saved: killed within and at the end of epochs."""
    epochs, expected, known = undisturbed
    train_until(tmp_path, KillAt(iteration), epochs=epochs)
    last = find_last_good(str(tmp_path))
    assert last.endswith(f'iter_{iteration // 2 * 2}.pth')
    state, recorder, _ = train(tmp_path, epochs=epochs, resume=last)
    assert_same(state, expected)
    assert list(recorder.losses) == list(range(iteration // 2 * 2 + 1, 10))
    assert all(known.losses[step] == loss for step, loss in recorder.losses.items())
    assert all(known.numbers[step] == numbers for step, numbers in recorder.numbers.items())


def test_workers_do_not_change_the_numbers(undisturbed, tmp_path):
    epochs, expected, _ = undisturbed
    train_until(tmp_path, KillAt(5), epochs=epochs, workers=1)
    state, _, _ = train(tmp_path, epochs=epochs, workers=2, resume=find_last_good(str(tmp_path)))
    assert_same(state, expected)


def test_images_behind_the_checkpoint_are_not_read(undisturbed, tmp_path):
    epochs, _, known = undisturbed
    train_until(tmp_path, KillAt(5), epochs=epochs)
    _, _, runner = train(tmp_path, epochs=epochs, resume=find_last_good(str(tmp_path)))
    to_come = [number for step in range(5, 10) for number in known.numbers[step]]
    assert runner.train_dataloader.dataset.dataset.read == to_come


def test_checkpoints_by_epoch(tmp_path):
    """The usual case of MMDetection: what was done of the killed epoch is repeated, with the same numbers."""
    options = dict(checkpoint=dict(by_epoch=True, interval=1))
    expected, _, _ = train(tmp_path / 'undisturbed', **options)
    train_until(tmp_path / 'killed', KillAt(5), **options)
    state, recorder, _ = train(tmp_path / 'killed', resume=find_last_good(str(tmp_path / 'killed')), **options)
    assert_same(state, expected)
    assert list(recorder.losses) == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize('at', [6, 9])
def test_evaluation_that_was_cut_off_is_made_up_for(undisturbed, tmp_path, at):
    epochs, expected, known = undisturbed
    options = dict(epochs=epochs, checkpoint=dict(interval=3))
    before = train_until(tmp_path, KillAt(in_evaluation=at), **options)
    state, recorder, _ = train(tmp_path, resume=find_last_good(str(tmp_path)), **options)
    assert before.evaluations + recorder.evaluations == known.evaluations == [3, 6, 9]
    assert_same(state, expected)
    assert sorted(json.loads((tmp_path / 'evaluations.json').read_text())) == ['3', '6', '9']


def test_finished_evaluation_is_not_repeated(undisturbed, tmp_path):
    epochs, _, _ = undisturbed
    options = dict(epochs=epochs, checkpoint=dict(interval=3))
    train_until(tmp_path, KillAt(7), **options)
    _, recorder, _ = train(tmp_path, resume=find_last_good(str(tmp_path)), **options)
    assert recorder.evaluations == [9]


def test_new_run_forgets_the_evaluations_of_another(tmp_path):
    (tmp_path / 'evaluations.json').write_text('{"3": {}, "77": {}}')
    train(tmp_path)
    assert sorted(json.loads((tmp_path / 'evaluations.json').read_text())) == ['3', '6', '9']


@pytest.mark.parametrize('epochs', [True, False])
def test_run_without_a_seed_resumes_with_the_seed_that_it_drew(tmp_path, epochs):
    recorder = train_until(tmp_path / 'a', KillAt(5), epochs=epochs, seed=None, model=ToyModel())
    known = {step: recorder.numbers[step] for step in (5,)}
    _, resumed, runner = train(tmp_path / 'a', epochs=epochs, seed=None, resume=tmp_path / 'a' / 'iter_4.pth')
    assert resumed.numbers[5] == known[5] and resumed.losses[5] == recorder.losses[5]
    assert runner.seed == load(tmp_path / 'a' / 'iter_4.pth')['meta']['seed']


def test_infinite_sampler(tmp_path):
    """As MMSegmentation's configs have it."""
    options = dict(epochs=False, sampler=dict(type='InfiniteSampler', shuffle=True))
    expected, known, _ = train(tmp_path / 'undisturbed', **options)
    train_until(tmp_path / 'killed', KillAt(7), **options)
    state, _, _ = train(tmp_path / 'killed', resume=find_last_good(str(tmp_path / 'killed')), **options)
    assert_same(state, expected)
    assert len({number for numbers in known.numbers.values() for number in numbers}) == 12


def test_other_batch_size_goes_on_at_the_same_share_of_the_epoch(tmp_path):
    train_until(tmp_path, KillAt(4), checkpoint=dict(interval=4))  # 1 of 3 batches of the second epoch
    _, recorder, runner = train(tmp_path, batch=2, resume=tmp_path / 'iter_4.pth')
    assert list(recorder.losses) == list(range(9, 19))  # 2 of 6 batches are behind it
    assert runner.iter == 18


def test_augmentation_does_not_depend_on_how_the_batch_is_shared(monkeypatch):
    """Two processes with 2 images each get the images and seeds of one process with 4."""
    from mmengine.dataset import DefaultSampler
    from torch.utils.data import BatchSampler

    from s6la_mm.engine.data import SeededBatches

    def batches(rank: int, world_size: int) -> list[list]:
        for module in ('s6la_mm.engine.data', 'mmengine.dataset.sampler'):
            monkeypatch.setattr(f'{module}.get_dist_info', lambda: (rank, world_size))
        sampler = DefaultSampler(range(12), seed=3)
        found = SeededBatches(BatchSampler(sampler, 4 // world_size, False), 3, endless=False)
        found.set_epoch(1)
        return list(found)

    one, first, second = batches(0, 1), batches(0, 2), batches(1, 2)
    assert [set(a) | set(b) for a, b in zip(first, second)] == [set(a) for a in one]
    assert len({seed for batch in one for _, seed in batch}) == 12


def test_empty_data_set_is_an_error(tmp_path):
    runner = build(tmp_path, epochs=False, dataset=dict(length=3), sampler=dict(type='DefaultSampler', shuffle=False))
    runner._train_dataloader['drop_last'] = True
    with pytest.raises(ValueError, match='gives no batch'):
        runner.train()
