"""No failure while saving costs a checkpoint that was there."""

from __future__ import annotations

import errno
import os
import resource

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from releases import load
from toy_runner import Killed, ToyModel, build

from s6la_mm.common.errors import UsageError
from s6la_mm.engine import SafeCheckpointHook, problem_of
from s6la_mm.engine.hooks.checkpoint import first_non_finite, require_resumable


def checkpoints(folder) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.endswith(('.pth', '.tmp')))


class FailAt:
    """Stands in for ``Runner.save_checkpoint``: writes a part of the file, then fails in one iteration."""

    def __init__(self, monkeypatch, iteration: int, error: BaseException) -> None:
        original = Runner.save_checkpoint

        def save_checkpoint(runner, out_dir, filename, *args, **kwargs):
            if runner.iter + 1 != iteration:
                return original(runner, out_dir, filename, *args, **kwargs)
            with open(os.path.join(out_dir, filename), 'wb') as file:
                file.write(b'half a checkpoint')
            raise error

        monkeypatch.setattr(Runner, 'save_checkpoint', save_checkpoint)


@pytest.mark.parametrize('keep', [1, 2])
def test_full_disk_keeps_the_earlier_checkpoint(tmp_path, monkeypatch, keep):
    FailAt(monkeypatch, 4, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    runner = build(tmp_path, checkpoint=dict(max_keep_ckpts=keep))
    with pytest.raises(
        UsageError, match=r'iter_4.pth cannot be written: No space left .*complete checkpoint is .*iter_2'
    ):
        runner.train()
    assert checkpoints(tmp_path) == ['iter_2.pth'] and problem_of(str(tmp_path / 'iter_2.pth')) is None
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_2.pth')


def test_disk_that_is_really_full(tmp_path):
    """A limit on the size of files, which no earlier checkpoint has reached, fails in the middle of writing."""
    runner = build(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Limit(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 3:
                size = os.path.getsize(tmp_path / 'iter_2.pth')
                resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))

    runner.register_hook(Limit())
    try:
        with pytest.raises(UsageError, match=r'iter_4.pth cannot be written: File too large'):
            runner.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoints(tmp_path) == ['iter_2.pth']


def test_kill_in_the_middle_of_saving(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        FailAt(patch, 4, Killed())
        with pytest.raises(Killed):
            build(tmp_path).train()
    assert checkpoints(tmp_path) == ['.iter_4.pth.tmp', 'iter_2.pth']
    build(tmp_path, resume=tmp_path / 'iter_2.pth').train()
    assert checkpoints(tmp_path) == [f'iter_{n}.pth' for n in (2, 4, 6, 8, 9)]


def test_only_the_last_ones_are_kept(tmp_path):
    build(tmp_path, checkpoint=dict(max_keep_ckpts=2)).train()
    assert checkpoints(tmp_path) == ['iter_8.pth', 'iter_9.pth']
    assert all(problem_of(str(tmp_path / name)) is None for name in checkpoints(tmp_path))


def test_saving_in_another_folder_is_left_to_the_runner(tmp_path):
    runner = build(tmp_path / 'a')
    runner.train()
    runner.save_checkpoint(str(tmp_path / 'b'), 'mine.pth', save_optimizer=False)
    assert checkpoints(tmp_path / 'b') == ['mine.pth']
    assert load(tmp_path / 'b/mine.pth')['meta']['iter'] == 9


def test_the_old_one_goes_after_the_new_one_came(tmp_path, monkeypatch):
    seen = {}
    original = Runner.save_checkpoint

    def save_checkpoint(runner, out_dir, filename, *args, **kwargs):
        seen[filename] = checkpoints(out_dir)
        return original(runner, out_dir, filename, *args, **kwargs)

    monkeypatch.setattr(Runner, 'save_checkpoint', save_checkpoint)
    build(tmp_path, checkpoint=dict(max_keep_ckpts=1)).train()
    assert seen['.iter_4.pth.tmp'] == ['iter_2.pth'] and seen['.iter_6.pth.tmp'] == ['iter_4.pth']


def test_best_checkpoint(tmp_path, monkeypatch):
    """The previous best goes after the new one came; if that fails, it is still there."""
    scores = iter([0.1, 0.2, 0.3])
    monkeypatch.setattr('toy_runner.ToyMetric.compute_metrics', lambda *_: dict(accuracy=next(scores)))
    original = Runner.save_checkpoint

    def save_checkpoint(runner, out_dir, filename, *args, **kwargs):
        if 'best' in filename and runner.iter == 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(runner, out_dir, filename, *args, **kwargs)

    monkeypatch.setattr(Runner, 'save_checkpoint', save_checkpoint)
    runner = build(tmp_path, checkpoint=dict(by_epoch=True, interval=1, save_best='accuracy', rule='greater'))
    with pytest.raises(UsageError, match=r'best_accuracy_epoch_3\.pth cannot be written'):
        runner.train()
    assert checkpoints(tmp_path) == ['best_accuracy_epoch_2.pth', 'epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth']


@pytest.mark.parametrize('scores', [(0.3, 0.2, 0.1), (0.1, 0.3, 0.2), (0.1, 0.2, 0.3)])
@pytest.mark.parametrize('several', [False, True])
def test_one_best_checkpoint_is_left(tmp_path, monkeypatch, scores, several):
    """Whenever it came, for one metric and for each of several; a resumed run knows it."""
    metrics = iter([dict(accuracy=score, loss=score) for score in scores])
    monkeypatch.setattr('toy_runner.ToyMetric.compute_metrics', lambda *_: next(metrics))
    best = dict(save_best=['accuracy', 'loss'], rule=['greater', 'less']) if several else dict(save_best='accuracy')
    runner = build(tmp_path, checkpoint=dict(by_epoch=True, interval=1, max_keep_ckpts=1, **best))
    runner.train()
    wanted = [f'best_accuracy_epoch_{scores.index(0.3) + 1}.pth']
    wanted += [f'best_loss_epoch_{scores.index(0.1) + 1}.pth'] if several else []
    assert checkpoints(tmp_path) == [*wanted, 'epoch_3.pth']
    info = load(tmp_path / 'epoch_3.pth')['message_hub']['runtime_info']
    key = 'best_ckpt_accuracy' if several else 'best_ckpt'
    assert info[key] == str(tmp_path / wanted[0])


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    class Spoil(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 3:
                runner.model.backbone.cells.layer2.A_log.data[1] = float('nan')

    with pytest.raises(UsageError, match=r'iter_4.pth was not written: \S+ is not finite.*iter_2.pth'):
        build(tmp_path, hooks=[Spoil()]).train()
    assert checkpoints(tmp_path) == ['iter_2.pth']


def test_first_non_finite():
    model = ToyModel()
    assert first_non_finite(model) is None
    model.backbone.bn1.running_var[0] = float('inf')
    assert first_non_finite(model) == 'backbone.bn1.running_var'
    model.backbone.bn1.running_var[0] = 3e38  # large is not infinite, although the sum of the next one is
    model.head.weight.data.fill_(3e38)
    assert first_non_finite(model) is None


def test_checkpoint_of_another_model(tmp_path):
    build(tmp_path / 'a').train()
    other = build(tmp_path / 'b', model=ToyModel(width=16), resume=tmp_path / 'a' / 'iter_8.pth')
    with pytest.raises(UsageError, match=r'another model: .* \d+ tensors are of another shape: .*load_from'):
        other.train()
    assert not checkpoints(tmp_path / 'b')


def test_what_is_wrong_with_a_checkpoint_to_resume_from():
    model = torch.nn.Linear(2, 2)
    state = model.state_dict()
    require_resumable(model, dict(optimizer={}, message_hub={}, state_dict=state))
    require_resumable(
        model, dict(optimizer={}, message_hub={}, state_dict={f'module.{k}': v for k, v in state.items()})
    )
    for checkpoint, words in (
        (dict(state_dict=state), 'no optimizer.*load_from'),
        (dict(optimizer={}, message_hub={}, state_dict=dict(weight=state['weight'])), 'missing from it: bias'),
        (
            dict(optimizer={}, message_hub={}, state_dict=dict(state, extra=state['bias'])),
            'unknown to the model: extra',
        ),
    ):
        with pytest.raises(UsageError, match=words):
            require_resumable(model, checkpoint)


def test_weights_only_in_load_from_are_not_compared(tmp_path):
    """Starting from weights of another head is what load_from is for."""
    torch.save(dict(state_dict={}), tmp_path / 'weights.pth')
    runner = build(tmp_path)
    runner._load_from = str(tmp_path / 'weights.pth')
    runner.train()
    assert runner.iter == 9


def test_the_iteration_that_is_meant_is_in_the_checkpoint(tmp_path):
    """FlexibleRunner writes another one: it takes it that each checkpoint follows a training step."""
    runner = build(tmp_path)
    hook = SafeCheckpointHook.of(runner)
    checkpoint = dict(meta=dict(epoch=4, iter=13, seed=0))
    hook.before_save_checkpoint(runner, checkpoint)  # of somebody else's save_checkpoint
    assert checkpoint['meta'] == dict(epoch=4, iter=13, seed=0)
    written = []

    class Other(type(runner)):
        """Calls the hook as FlexibleRunner does."""

        def save_checkpoint(self, out_dir, filename, *args, meta, **kwargs):
            checkpoint = dict(meta=dict(meta, epoch=4, iter=13))
            hook.before_save_checkpoint(self, checkpoint)
            written.append(checkpoint['meta'])
            (tmp_path / filename).mkdir()  # as DeepSpeed's does
            (tmp_path / filename / 'part').write_bytes(b'x')

    runner.__class__ = Other
    hook.before_train(runner)
    for _ in range(2):  # a second time when it is the best
        hook._save_checkpoint_with_step(runner, 3, dict(epoch=3, iter=12))
    assert written == [dict(epoch=3, iter=12)] * 2 and os.listdir(tmp_path / 'iter_3.pth') == ['part']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_3.pth')
