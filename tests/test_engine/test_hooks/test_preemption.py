"""A signal ends the training after its iteration, with a checkpoint and status 75."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
import torch
from forked import Forked
from mmengine.hooks import Hook
from tool_runner import ROOT
from toy_runner import build

from s6la_mm.engine import PREEMPTED_STATUS, PreemptionHook, find_last_good


class SendAt(Hook):
    """Sends this process a signal in an iteration of the training, or of an evaluation."""

    def __init__(self, number: signal.Signals, iteration: int, evaluates: bool = False) -> None:
        self.number = number
        self.iteration = iteration
        self.evaluates = evaluates

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration and not self.evaluates:
            os.kill(os.getpid(), self.number)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration and self.evaluates:
            os.kill(os.getpid(), self.number)


def train(work_dir, **options) -> dict:
    torch.manual_seed(0)
    runner = build(work_dir, **options)
    runner.train()
    return runner.model.state_dict()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize('workers', [0, 1])
def test_signal_saves_and_the_resumed_run_is_the_same(tmp_path, monkeypatch, number, workers):
    expected = train(tmp_path / 'undisturbed', checkpoint=dict(by_epoch=True, interval=1))
    status_file = tmp_path / 'status'
    monkeypatch.setenv('S6LA_STATUS_FILE', str(status_file))
    options = dict(checkpoint=dict(by_epoch=True, interval=1), workers=workers)
    with pytest.raises(SystemExit) as stop:
        train(tmp_path / 'run', hooks=[PreemptionHook(), SendAt(number, 4)], **options)
    assert stop.value.code == PREEMPTED_STATUS == 75 and status_file.read_text() == '75'
    last = find_last_good(str(tmp_path / 'run'))
    assert last == str(tmp_path / 'run' / 'preempted_iter_5.pth')
    state = train(tmp_path / 'run', hooks=[PreemptionHook()], resume=last, **options)
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    names = sorted(p.name for p in (tmp_path / 'run').glob('*.pth'))
    assert names == ['epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth']  # the extra one is gone


TRAINING = """
import sys, time
sys.path.insert(0, {tests!r})
from toy_runner import build
from s6la_mm.engine import PreemptionHook

runner = build({work_dir!r}, epochs=False, workers=1, hooks=[PreemptionHook()])
if {fails}:
    runner.train_loop.run_iter = None
try:
    runner.train()
finally:
    print('end', time.time(), flush=True)
"""


@pytest.mark.parametrize('fails', [False, True])
def test_workers_end_with_the_training(tmp_path, fails):
    """multiprocessing ends them with SIGTERM, which is not the signal of a scheduler, to be outlived for a minute."""
    code = TRAINING.format(tests=str(ROOT / 'tests'), work_dir=str(tmp_path / 'run'), fails=fails)
    process = Forked('-c', code, log=tmp_path / 'log')
    status, end = process.wait(), time.time()
    assert status == fails and ("'NoneType' object is not callable" in process.output) == fails
    started = float(re.search(r'^end (.+)$', process.output, re.MULTILINE)[1])
    assert end - started < 30 and 'killed by signal' not in process.output, process.output


def test_signal_during_an_evaluation(tmp_path):
    hooks = [PreemptionHook(), SendAt(signal.SIGTERM, 6, evaluates=True)]
    with pytest.raises(SystemExit):
        train(tmp_path, hooks=hooks, checkpoint=dict(interval=9))
    last = find_last_good(str(tmp_path))
    assert last.endswith('preempted_iter_6.pth')
    evaluated = []

    class Note(Hook):
        def after_val_epoch(self, runner, metrics=None):
            evaluated.append(runner.iter)

    train(tmp_path, hooks=[Note()], checkpoint=dict(interval=9), resume=last)
    assert evaluated == [6, 9]


def test_accumulated_gradients_are_waited_for(tmp_path):
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1), accumulative_counts=3)
    with pytest.raises(SystemExit):
        train(tmp_path, hooks=[PreemptionHook(), SendAt(signal.SIGTERM, 3)], optim_wrapper=wrapper)
    assert find_last_good(str(tmp_path)).endswith('preempted_iter_6.pth')


def test_signals_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    train(tmp_path, hooks=[PreemptionHook()])
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize('options', [dict(signals=['SIGNOTHING']), dict(interval=0)])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match='are allowed'):
        PreemptionHook(**options)


def test_signal_during_an_evaluation_of_averaged_weights(tmp_path):
    """The checkpoint has the raw weights as those to train on, though the model holds the averaged ones meanwhile."""
    options = dict(
        checkpoint=dict(interval=9), optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
    )

    def hooks(*others):
        return [dict(type='EMAHook', momentum=0.3), PreemptionHook(), *others]

    whole = train(tmp_path / 'whole', hooks=hooks(), **options)
    with pytest.raises(SystemExit):
        train(tmp_path / 'cut', hooks=hooks(SendAt(signal.SIGTERM, 6, evaluates=True)), **options)
    last = find_last_good(str(tmp_path / 'cut'))
    assert last.endswith('preempted_iter_6.pth')
    resumed = train(tmp_path / 'cut', hooks=hooks(), resume=last, **options)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
