"""Checkpoints that a kill, a full disk or non-finite weights cannot spoil."""

from __future__ import annotations

import glob
import itertools
import os.path as osp
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...checkpoint.matching import shortened
from ...common.errors import UsageError
from ...common.files import complete_or_not, remove, temporary_name, write_atomically
from ..resuming import find_last_good
from ..schedules import compare_schedules


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """``CheckpointHook`` that never leaves a run without a complete checkpoint; its options are the same.

    A checkpoint is written under a temporary name, brought to the disk and renamed. Older ones and the previous best
    are deleted after that, not before. Weights that are not finite are not saved. A resumed checkpoint must have the
    tensors of the model. Remote backends are written to as mmengine does, which deletes after writing here too.

    Example:
        >>> default_hooks = dict(checkpoint=dict(type='SafeCheckpointHook', interval=1, max_keep_ckpts=3))
    """

    _meant: dict[str, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Removes what a killed run left half-written; see also ``CheckpointHook.before_train``."""
        super().before_train(runner)
        self.is_local = isinstance(self.file_backend, LocalBackend)
        # Not in a file backend: strategies do not ask for the one of this hook, and DeepSpeed's writes folders.
        runner.save_checkpoint = partial(self._save_complete, runner, type(runner).save_checkpoint)
        if is_main_process() and self.is_local:
            for leftover in glob.glob(osp.join(glob.escape(self.out_dir), temporary_name('*.pth'))):
                print_log(f'{leftover} was not written to its end: removed', logger='current')
                remove(leftover)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compares a checkpoint to resume from with the model and the schedule.

        Raises:
            UsageError: If it is of another model or optimizer, or holds weights only.
        """
        model = runner.model.module if isinstance(runner.model, DistributedDataParallel) else runner.model
        if not getattr(runner, '_resume', False):
            return
        if not is_model_wrapper(model):  # a sharded model has other names
            require_resumable(model, checkpoint)
        compare_schedules(runner, checkpoint)

    @classmethod
    def of(cls, runner: Runner) -> SafeCheckpointHook | None:
        """The hook of this kind that a runner has, or None."""
        return next((hook for hook in runner.hooks if isinstance(hook, cls)), None)

    def save_extra(self, runner: Runner, name: str, iteration: int) -> str:
        """Saves between the intervals; the next regular checkpoint replaces it.

        Args:
            runner (Runner): The runner.
            name (str): Begin of the file's name, which ends with the iteration.
            iteration (int): Number of iterations that are done.

        Returns:
            str: The file.

        Raises:
            UsageError: If the weights are not finite, or the file cannot be written.
        """
        filename = f'{name}_iter_{iteration}.pth'
        extras = runner.message_hub.runtime_info.get('extra_checkpoints', [])
        runner.message_hub.update_info('extra_checkpoints', [*extras, filename])
        self._save(runner, filename, dict(epoch=runner.epoch, iter=iteration))
        return self.last_ckpt

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Writes which iteration is meant: FlexibleRunner takes it that every checkpoint follows a training step."""
        checkpoint['meta'].update(self._meant)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        hub = runner.message_hub
        outdated = hub.runtime_info.get('extra_checkpoints', [])
        hub.update_info('extra_checkpoints', [])
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = [*outdated, self.filename_tmpl.format(self.keep_ckpt_ids[0])]
            self.keep_ckpt_ids.append(step)  # a deque: the first one falls out
            hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self._save(runner, self.filename_tmpl.format(step), meta)
        self._remove([self._join(name) for name in outdated])

    def _save(self, runner: Runner, filename: str, meta: dict) -> None:
        self.last_ckpt = self._join(filename)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            filename,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_atomically(osp.join(runner.work_dir, 'last_checkpoint'), self.last_ckpt)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        # mmengine's method removes the previous best before it saves the new one: it does not get to know of any.
        bests, names = self.__dict__, ['best_ckpt_path']
        if hasattr(self, 'best_ckpt_path_dict'):  # there are several metrics
            bests, names = self.best_ckpt_path_dict, self.key_indicators
        previous = {name: bests[name] for name in names}
        bests.update(dict.fromkeys(names))
        super()._save_best_checkpoint(runner, metrics)
        self._remove([path for name, path in previous.items() if path and bests[name] not in (None, path)])
        bests.update({name: path for name, path in previous.items() if bests[name] is None})

    def _save_complete(
        self, runner: Runner, save: Callable, out_dir: str, filename: str, *args: Any, **kwargs: Any
    ) -> None:
        """Stands in for the runner's ``save_checkpoint``: a file has its name when it is complete."""
        if out_dir != self.out_dir:  # somebody else's, maybe on another backend
            return save(runner, out_dir, filename, *args, **kwargs)
        path = self._join(filename)
        bad = first_non_finite(runner.model)
        if bad:
            raise UsageError(f'{path} was not written: {bad} is not finite. {_what_is_left(runner)}')
        self._meant = dict(kwargs.get('meta') or {})
        try:
            with complete_or_not(path, self.is_local and is_main_process()) as temporary:
                save(runner, out_dir, osp.basename(temporary) if self.is_local else filename, *args, **kwargs)
                barrier()  # some strategies write from every process
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(f'{path} cannot be written: {reason}. {_what_is_left(runner)}') from error
        finally:
            self._meant = {}

    def _join(self, filename: str) -> str:
        return self.file_backend.join_path(self.out_dir, filename)

    def _remove(self, paths: list[str]) -> None:
        for path in paths if is_main_process() else ():
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # DeepSpeed's checkpoints are folders
                self.file_backend.rmtree(path)


def _what_is_left(runner: Runner) -> str:
    last = find_last_good(runner.work_dir)
    left = 'There is no earlier checkpoint' if last is None else f'The last complete checkpoint is {last}'
    return f'{left}; the training stopped at iteration {runner.iter}, --resume goes on'


def are_finite(tensors: list[Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity, in one pass over them if so.

    Args:
        tensors (list[Tensor]): Floating-point tensors, not necessarily on one device.

    Example:
        >>> are_finite([torch.tensor([3e38, 3e38])]), are_finite([torch.tensor([1.0, float('nan')])])
        (True, False)
    """
    # A sum is not finite if one of its terms is not. Finite terms may overflow: then they are looked at one by one.
    sums = [t.detach().sum(dtype=torch.float32) for t in tensors]
    if not sums or torch.stack([s.to(sums[0].device) for s in sums]).isfinite().all():
        return True
    return all(bool(t.isfinite().all()) for t in tensors)


def has_stepped(optim_wrapper: OptimWrapper) -> bool:
    """Whether the weights have all gradients so far, behind an iteration; False while some are accumulated.

    Args:
        optim_wrapper (OptimWrapper): One, or a dict of several, whose steps are the model's own affair: True then.

    Example:
        >>> from mmengine.optim import OptimWrapper
        >>> has_stepped(OptimWrapper(torch.optim.SGD([torch.ones(1)], lr=1.0)))
        True
    """
    if isinstance(optim_wrapper, OptimWrapperDict):
        return True
    return getattr(optim_wrapper, 'should_update', lambda: True)()  # DeepSpeed's has none


def first_non_finite(model: nn.Module) -> str | None:
    """The name of the first parameter or buffer with NaN or infinity, or None.

    Args:
        model (nn.Module): Any module.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.bias.data[0] = float('nan')
        >>> first_non_finite(layer)
        'bias'
    """
    # Not the state_dict, which sharded models gather.
    named = itertools.chain(model.named_parameters(), model.named_buffers())
    tensors = {name: t for name, t in named if torch.is_floating_point(t) and t.numel()}
    if are_finite(list(tensors.values())):
        return None
    return next(name for name, t in tensors.items() if not t.isfinite().all())


def require_resumable(model: nn.Module, checkpoint: dict) -> None:
    """Checks that a checkpoint continues a training of this model.

    Args:
        model (nn.Module): The model, not wrapped.
        checkpoint (dict): What was loaded.

    Raises:
        UsageError: If tensors are missing, left over or of another shape, or it holds no training state.
    """
    if 'optimizer' not in checkpoint or 'message_hub' not in checkpoint:
        raise UsageError(
            'the checkpoint to resume from holds no optimizer: it is a published or best checkpoint. To start from its '
            'weights, set load_from instead of resuming'
        )
    there = {name.removeprefix('module.'): tuple(t.shape) for name, t in checkpoint['state_dict'].items()}
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    kinds = {
        'missing from it': wanted.keys() - there.keys(),
        'unknown to the model': there.keys() - wanted.keys(),
        'of another shape': {name for name in wanted.keys() & there.keys() if there[name] != wanted[name]},
    }
    problems = [
        f'{len(names)} tensors are {what}: {shortened(sorted(names), 3)}' for what, names in kinds.items() if names
    ]
    if problems:
        raise UsageError(
            f'the checkpoint to resume from is of another model: {"; ".join(problems)}. Resume with the config that '
            'wrote it and its work dir, or set load_from to start anew from what fits'
        )
