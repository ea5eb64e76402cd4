"""Training loops that go on where a checkpoint was written, in the middle of an epoch too."""

from __future__ import annotations

import json
import logging
import os.path as osp
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from mmengine.dist import broadcast_object_list, get_rank, is_main_process
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook, ParamSchedulerHook
from mmengine.logging import print_log
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ..common.files import read_json, write_atomically
from .data import ResumableDataLoader
from .seeding import derive_seed, seed_generators

# In the message hub, which checkpoints hold.
_POSITION = 'train_position'
_EARLY_STOPPING = 'early_stopping'
_EVALUATED = 'last_evaluation'


class _Resumable(BaseLoop):
    """What both loops share: the data loader, the seeds, evaluations that a kill cut off, and what counts on them."""

    endless = False
    _in_checkpoint: dict[str, float] | None = None
    dataloader: ResumableDataLoader
    _iter: int

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, **kwargs: Any) -> None:
        self._dataloader_cfg = dataloader
        super().__init__(runner, self._build(runner), **kwargs)

    def _build(self, runner: Runner, dataset: Any = None) -> ResumableDataLoader:
        cfg = self._dataloader_cfg
        if dataset is not None and isinstance(cfg, dict):
            cfg = dict(cfg, dataset=dataset)
        different = getattr(runner, '_randomness_cfg', {}).get('diff_rank_seed', False)
        self._seed = runner.seed
        loader = runner.build_dataloader(cfg, seed=runner.seed, diff_rank_seed=different)
        return ResumableDataLoader(loader, runner.seed, self.endless)

    def _restore_seed(self) -> None:
        """Takes over the seed of the resumed run, which without a seed in the config is another one."""
        if self._seed != self.runner.seed:
            self.dataloader = self._build(self.runner, self.dataloader.dataset.dataset)

    def run_iter(self, *args: Any) -> None:
        """One iteration; its random numbers depend on its number."""
        seed_generators(derive_seed(self.runner.seed, self._iter, get_rank()))
        super().run_iter(*args)

    @property
    def _evaluations(self) -> str:
        return osp.join(self.runner.work_dir, 'evaluations.json')

    def _read_evaluations(self) -> dict[str, dict[str, float]]:
        return read_json(self._evaluations) or {}

    def _forget_later_evaluations(self) -> None:
        """Drops those of another run in this folder, and of iterations that are to be computed again."""
        if is_main_process() and osp.exists(self._evaluations):
            kept = {step: numbers for step, numbers in self._read_evaluations().items() if int(step) <= self._iter}
            write_atomically(self._evaluations, json.dumps(kept, indent=1))

    def _validate_if_due(self) -> None:
        """Evaluates if it is time.

        Unless this was done before a resume; then what counts on metrics gets those that it gave. A checkpoint is
        written before the evaluation, and mmengine's hook writes it anew behind it where this was the best one: then
        only the hooks that stop the training do not know it yet.
        """
        in_checkpoint, self._in_checkpoint = self._in_checkpoint, None
        done, end = self._progress
        is_turn = done >= self.val_begin and (done % self.val_interval == 0 or done == end)
        if self.runner.val_loop is None or not is_turn:
            return
        known = [in_checkpoint if in_checkpoint is not None else self._read_evaluations().get(str(self._iter))]
        broadcast_object_list(known)  # other nodes may have another disk
        if known[0] is None:
            numbers = _numbers(self.runner.val_loop.run())
        else:
            numbers = known[0]
            self._count(numbers, (EarlyStoppingHook,) if in_checkpoint is not None else _COUNTING)
        counts = [
            dict(monitor=hook.monitor, rule=hook.rule, wait_count=hook.wait_count, best_score=float(hook.best_score))
            for hook in self._early_stopping_hooks()
        ]
        self.runner.message_hub.update_info(_EARLY_STOPPING, counts)
        if is_main_process():
            evaluations = {**self._read_evaluations(), str(self._iter): numbers}
            write_atomically(self._evaluations, json.dumps(evaluations, indent=1))

    def _early_stopping_hooks(self) -> list[EarlyStoppingHook]:
        return [hook for hook in self.runner.hooks if isinstance(hook, EarlyStoppingHook)]

    def _restore_counts(self) -> None:
        """Gives hooks that wait for a better metric what they had counted when the checkpoint was written."""
        info = self.runner.message_hub.runtime_info
        saved = list(info.get(_EARLY_STOPPING, []))
        for hook in self._early_stopping_hooks():
            same = [entry for entry in saved if (entry['monitor'], entry['rule']) == (hook.monitor, hook.rule)]
            if same:
                saved.remove(same[0])
                vars(hook).update(same[0])
        evaluated = info.get(_EVALUATED, {})
        self._in_checkpoint = evaluated['metrics'] if evaluated.get('iter') == self._iter else None
        self.runner.register_hook(_NoteEvaluation())

    def _count(self, metrics: dict[str, float], kinds: tuple[type[Hook], ...]) -> None:
        """Tells hooks what an evaluation gave that was made behind the checkpoint."""
        for hook in self.runner.hooks if metrics else ():
            if isinstance(hook, kinds):
                hook.after_val_epoch(self.runner, metrics)


class _NoteEvaluation(Hook):
    """Notes an evaluation for the checkpoint that is written anew behind it, if it was the best one."""

    priority = 'VERY_HIGH'  # before schedulers and checkpoints

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        runner.message_hub.update_info(_EVALUATED, dict(iter=runner.iter, metrics=_numbers(metrics)))


_COUNTING = (_NoteEvaluation, CheckpointHook, EarlyStoppingHook, ParamSchedulerHook)  # what keeps account of metrics


def _numbers(metrics: dict | None) -> dict[str, float]:
    """What of an evaluation is a number, as JSON takes it."""
    found = metrics or {}
    is_number = {k: isinstance(v, Real) or (isinstance(v, torch.Tensor) and v.numel() == 1) for k, v in found.items()}
    return {key: float(value) for key, value in found.items() if is_number[key]}


@LOOPS.register_module()
class ResumableEpochBasedTrainLoop(_Resumable, EpochBasedTrainLoop):
    """``EpochBasedTrainLoop`` that resumes in the middle of an epoch.

    mmengine's loop begins the epoch again. The images and random numbers are those that were to come: each iteration
    and each sample gets its own seed here (see ``s6la_mm.engine.seeding``), so that with
    ``randomness=dict(deterministic=True)`` a resumed run computes the same numbers as one that was not interrupted.

    Args:
        runner (Runner): The runner.
        dataloader (DataLoader | dict): The training data.
        **kwargs: ``max_epochs`` and the others of ``EpochBasedTrainLoop``.

    Example:
        >>> train_cfg = dict(type='ResumableEpochBasedTrainLoop', max_epochs=12, val_interval=1)
    """

    def run(self) -> torch.nn.Module:
        """Trains."""
        self._restore_seed()
        self._restore_counts()
        self._start = self._find_start()
        self._forget_later_evaluations()
        self.runner.call_hook('before_train')
        if self._iter and not self._start:
            self._decide_current_val_interval()
            self._validate_if_due()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._decide_current_val_interval()
            self._validate_if_due()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Trains an epoch, or what is left of it."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        start, self._start = self._start, 0
        self.dataloader.seek(self._epoch, start)
        for index, batch in enumerate(self.dataloader, start):
            self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Sequence[dict]) -> None:
        """Trains one batch; a checkpoint written meanwhile says that it is done."""
        position = dict(epoch=self._epoch, done=idx + 1, batches=len(self.dataloader))
        self.runner.message_hub.update_info(_POSITION, position)
        super().run_iter(idx, data_batch)

    @property
    def _progress(self) -> tuple[int, int]:
        return self._epoch, self._max_epochs

    def _find_start(self) -> int:
        """The batch of the current epoch to go on with."""
        position = self.runner.message_hub.runtime_info.get(_POSITION)
        if self._iter == 0 or position is None or position['epoch'] != self._epoch:
            start = 0
        else:
            start = position['done']
        batches = len(self.dataloader)
        if position is not None and self._iter > 0 and position['batches'] != batches:
            start = start * batches // position['batches']
            self._iter = self._epoch * batches + start
            print_log(
                f'The resumed run had {position["batches"]} batches per epoch, this one has {batches} (another batch '
                f'size or number of processes): it goes on at batch {start} of epoch {self._epoch + 1}, iteration '
                f'{self._iter}.',
                logger='current',
                level=logging.WARNING,
            )
        return start


@LOOPS.register_module()
class ResumableIterBasedTrainLoop(_Resumable, IterBasedTrainLoop):
    """``IterBasedTrainLoop`` that resumes without reading the images which are behind it.

    mmengine's loop loads and augments every batch since the first iteration again. See
    :class:`ResumableEpochBasedTrainLoop`.

    Args:
        runner (Runner): The runner.
        dataloader (DataLoader | dict): The training data; a sampler that ends is begun anew, as its next epoch.
        **kwargs: ``max_iters`` and the others of ``IterBasedTrainLoop``.

    Example:
        >>> train_cfg = dict(type='ResumableIterBasedTrainLoop', max_iters=80000, val_interval=8000)
    """

    endless = True

    def run(self) -> torch.nn.Module:
        """Trains."""
        self._restore_seed()
        self._restore_counts()
        self._forget_later_evaluations()
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self.dataloader.seek(0, self._iter)
        self.dataloader_iterator = iter(self.dataloader)
        if self._iter:
            self._decide_current_val_interval()
            self._validate_if_due()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._decide_current_val_interval()
            self._validate_if_due()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    @property
    def _progress(self) -> tuple[int, int]:
        return self._iter, self._max_iters
