"""What counts on metrics, and moving averages, go on over a resume as without a break."""

from __future__ import annotations

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from test_loops import KillAt, Recorder, assert_same
from test_loops import train as train_toy
from test_loops import train_until as train_toy_until
from torch import nn
from toy_runner import ToyMetric

from s6la_mm.common.errors import UsageError
from s6la_mm.engine import find_last_good
from s6la_mm.engine.schedules import _differences_of_optimizers

METRICS = [0.5, 0.5, 0.7, 0.6, 0.6, 0.6, 0.65, 0.6, 0.6, 0.6]  # of the evaluations at iterations 3, 6, …


class Line(BaseModel):
    """A linear layer with batch norm: as much as these tests need."""

    def __init__(self) -> None:
        super().__init__(data_preprocessor=dict(type='ImgDataPreprocessor'))
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, inputs, data_samples=None, mode='tensor', **_):
        logits = self.head(self.norm(inputs.mean((2, 3))))
        labels = torch.tensor([sample.label for sample in data_samples])
        if mode == 'loss':
            return dict(loss=nn.functional.cross_entropy(logits, labels))
        return [dict(correct=True) for _ in labels]


def train(work_dir, **options) -> tuple[dict, Recorder, Runner]:
    torch.manual_seed(0)
    return train_toy(work_dir, model=Line(), **options)


def train_until(work_dir, kill: KillAt, **options) -> None:
    torch.manual_seed(0)
    train_toy_until(work_dir, kill, model=Line(), **options)


@HOOKS.register_module()
class TellIteration(Hook):
    """Tells the metric which iteration it evaluates."""

    def before_val(self, runner) -> None:
        (metric,) = runner.val_loop.evaluator.metrics
        metric.iteration = runner.iter


@pytest.fixture
def metrics(monkeypatch):
    """The evaluations give what stands above."""

    def compute_metrics(self, results: list) -> dict:
        value = METRICS[self.iteration // 3 - 1]
        return dict(accuracy=value, error=torch.tensor(1 - value))

    monkeypatch.setattr(ToyMetric, 'compute_metrics', compute_metrics)


def options(epochs: bool, end: int = 10, **early: object) -> dict:
    """An evaluation every 3 iterations, a checkpoint before each."""
    stop = dict(type='EarlyStoppingHook', monitor='accuracy', min_delta=0.01, patience=3) | early
    checkpoint = dict(interval=1 if epochs else 3, by_epoch=epochs, max_keep_ckpts=2)
    return dict(
        epochs=epochs,
        train_cfg=dict(max_epochs=end) if epochs else dict(max_iters=3 * end),
        checkpoint=dict(checkpoint, save_best='accuracy', rule='greater'),
        hooks=[stop, dict(type='TellIteration')],
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=6),
            dict(type='ReduceOnPlateauLR', monitor='accuracy', rule='greater', patience=1, factor=0.5),
        ],
    )


@pytest.mark.parametrize('epochs', [True, False], ids=['epochs', 'iterations'])
def test_kills_behind_and_in_evaluations_change_nothing(metrics, tmp_path, epochs):
    """Of three kills, one cuts an evaluation off; at last a run that has ended is resumed once more."""
    given = options(epochs)
    expected, _, runner = train(tmp_path / 'one', **given)
    assert runner.iter == 18  # 0.7 at iteration 9, and three evaluations without a better one
    rates = [group['lr'] for group in runner.optim_wrapper.param_groups]
    assert rates[0] < 1e-2  # the plateau was seen
    work_dir = tmp_path / 'two'
    for kill in (KillAt(4), KillAt(in_evaluation=9), KillAt(13)):
        train_until(work_dir, kill, resume=find_last_good(str(work_dir)), **given)
    for iterations in (range(13, 19), []):
        state, recorder, runner = train(work_dir, resume=find_last_good(str(work_dir)), **given)
        assert list(recorder.losses) == list(iterations) and runner.iter == 18
        print(iterations, [s.state_dict() for s in runner.param_schedulers])
        assert [group['lr'] for group in runner.optim_wrapper.param_groups] == rates
        assert_same(state, expected)
        assert runner.message_hub.get_info('best_score') == 0.7
    (best,) = work_dir.glob('best_accuracy_*')
    assert best.name == ('best_accuracy_epoch_3.pth' if epochs else 'best_accuracy_iter_9.pth')


@pytest.mark.parametrize(
    ('early', 'end', 'last'),
    [
        (dict(monitor='error', rule='less'), 4, 18),
        pytest.param(dict(stopping_threshold=0.62), 3, 9, marks=pytest.mark.nightly),
        pytest.param(dict(patience=2), 4, 15, marks=pytest.mark.nightly),
    ],
)
def test_training_that_is_extended(metrics, tmp_path, early, end, last):
    """It ends where one of that length would have ended."""
    train(tmp_path, **options(True, end, **early))
    _, recorder, runner = train(tmp_path, resume=tmp_path / f'epoch_{end}.pth', **options(True, **early))
    assert runner.iter == last and list(recorder.losses) == list(range(3 * end + 1, last + 1))


def test_in_another_folder_the_evaluation_is_made_again(metrics, tmp_path):
    """That folder has no evaluations.json: the checkpoint is enough, and nothing is counted twice."""
    train(tmp_path / 'one', **options(True, 4))
    _, recorder, runner = train(tmp_path / 'two', resume=tmp_path / 'one/epoch_4.pth', **options(True))
    assert recorder.evaluations == [12, 15, 18] and runner.iter == 18


@pytest.mark.parametrize(
    'average',
    [
        dict(ema_type='mmdet.ExpMomentumEMA', momentum=0.1, gamma=5, update_buffers=True, begin_epoch=2),
        pytest.param(dict(ema_type='ExponentialMovingAverage', momentum=0.2), marks=pytest.mark.nightly),
        pytest.param(dict(ema_type='StochasticWeightAverage', interval=2), marks=pytest.mark.nightly),
    ],
    ids=['exponential momentum', 'exponential', 'stochastic'],
)
def test_moving_averages(tmp_path, average):
    given = dict(hooks=[dict(type='EMAHook', **average)])
    train(tmp_path / 'one', **given)
    train_until(tmp_path / 'two', KillAt(in_evaluation=6), **given)
    train(tmp_path / 'two', resume=find_last_good(str(tmp_path / 'two')), **given)
    expected, state = (torch.load(tmp_path / name / 'iter_8.pth', weights_only=False) for name in ('one', 'two'))
    assert_same(state['state_dict'], expected['state_dict'])
    assert_same(state['ema_state_dict'], expected['ema_state_dict'])
    assert not torch.equal(state['state_dict']['head.weight'], state['ema_state_dict']['module.head.weight'])


def resume_with(work_dir, capsys, **more: object) -> str:
    """What is logged when a run of one epoch goes on with other options."""
    train(work_dir, resume=work_dir / 'iter_2.pth', **more)
    lines = [line for line in capsys.readouterr().out.splitlines() if 'another schedule' in line]
    return lines[-1] if lines else ''


def test_the_log_says_whose_schedule_counts(tmp_path, capsys):
    first = dict(train_cfg=dict(max_epochs=1))
    train(tmp_path, **first)
    assert resume_with(tmp_path, capsys, **first) == ''
    warmup, sgd = dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=6), dict(type='SGD', lr=1e-2)
    text = resume_with(
        tmp_path,
        capsys,
        train_cfg=dict(max_epochs=2),
        param_scheduler=[dict(warmup, end=4), dict(type='MultiStepLR', milestones=[1])],
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05)),
    )
    checkpoint, config = text.split('The config counts for')
    assert 'WARNING' in checkpoint and 'param_scheduler[0] (LinearLR): end 6, not 4' in checkpoint
    assert 'optimizer lr 0.01, not 0.001' in checkpoint and 'weight_decay' not in checkpoint
    assert 'train_cfg.max_epochs: 2, not 1' in config and '2 in param_scheduler, not 1' in config
    cosine = dict(type='CosineAnnealingLR', T_max=6, by_epoch=False)
    assert 'goes on; its state is that of a scheduler of another type, without T_max' in resume_with(
        tmp_path, capsys, param_scheduler=[cosine], **first
    )
    with pytest.raises(UsageError, match=r'has no dampening, momentum: it is of another type than SGD'):
        resume_with(tmp_path, capsys, optim_wrapper=dict(type='OptimWrapper', optimizer=sgd))
    groups = dict(paramwise_cfg=dict(norm_decay_mult=0), optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.05))
    with pytest.raises(UsageError, match=r'has 1 groups of parameters, \d+ in the config'):
        resume_with(tmp_path, capsys, optim_wrapper=dict(type='OptimWrapper', **groups))


def test_betas_that_a_scheduler_moved_are_no_other_schedule():
    def wrapper(**group: float) -> OptimWrapper:
        optimizer = torch.optim.AdamW(nn.Linear(1, 1).parameters(), lr=0.1)
        optimizer.param_groups[0].update(group)
        return OptimWrapper(optimizer)

    saved = wrapper(initial_momentum=0.9, momentum=0.85, betas=(0.85, 0.999)).state_dict()
    assert not list(_differences_of_optimizers(wrapper(initial_momentum=0.9, momentum=0.9), saved))
    assert not list(_differences_of_optimizers(wrapper(initial_momentum=0.9, momentum=0.9), wrapper().state_dict()))
    assert list(_differences_of_optimizers(wrapper(), wrapper(weight_decay=0.5).state_dict()))
