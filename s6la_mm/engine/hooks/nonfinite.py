"""What to do when a training gives NaN: step over it, and say where it comes from before hours are lost."""

from __future__ import annotations

import logging
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ...common.errors import UsageError
from ...layers.probes import watch_cells
from ..resuming import find_last_good
from .checkpoint import SafeCheckpointHook, are_finite, has_stepped


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Leaves out optimizer steps whose gradients are not finite, and stops the training when they come in a row.

    A left-out step changes neither weights nor momenta, and the statistics of batch norm are put back. With
    ``AmpOptimWrapper`` the loss scaler leaves steps out itself; there an iteration is bad if the scale fell. When the
    training stops, the message names the iteration, the losses, the image files, the first S6LA stage whose state is
    not finite, and a checkpoint with the weights from before.

    Args:
        max_consecutive (int): Bad iterations in a row that stop the training, those between two steps counted once
            where gradients are accumulated. Defaults to 20; a loss scaler finds its scale in fewer.

    Example:
        >>> custom_hooks = [dict(type='NonFiniteHook', max_consecutive=20)]
    """

    priority = 'ABOVE_NORMAL'  # before checkpoints, so that a stop is not preceded by one

    def __init__(self, max_consecutive: int = 20) -> None:
        if max_consecutive < 1:
            raise ValueError(f'max_consecutive={max_consecutive!r} is not allowed: it must be 1 or more')
        self.max_consecutive = max_consecutive
        self._bad_in_a_row = 0
        self._is_bad = False
        self._between_steps = False
        self._files: list[str] = []
        self._handles: list = []
        self._buffers: list[Tensor] = []
        self._kept: list[Tensor] = []
        self._scale: float | None = None

    def before_train(self, runner: Runner) -> None:
        """Looks at the gradients before every step from now on."""
        wrappers = getattr(runner.optim_wrapper, 'optim_wrappers', {None: runner.optim_wrapper}).values()
        for wrapper in wrappers:
            if hasattr(wrapper.optimizer, 'register_step_pre_hook'):
                self._handles.append(wrapper.optimizer.register_step_pre_hook(self._check_gradients))
        self._buffers = [b for b in runner.model.buffers() if b.is_floating_point()]
        self._kept = [b.clone() for b in self._buffers]
        self._scale = self._loss_scale(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keeps the statistics of batch norm."""
        if self._between_steps:  # gradients are accumulated: they are from before the first of these iterations
            return
        self._is_bad = False
        self._files = []
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Counts bad iterations.

        Raises:
            UsageError: After ``max_consecutive`` of them.
        """
        scale, previous = self._loss_scale(runner), self._scale
        self._scale = scale
        loss_is_bad = not torch.as_tensor((outputs or {}).get('loss', 0.0)).isfinite().all()
        if loss_is_bad:
            self._put_back()  # at once, for a checkpoint between two steps
        # A loss that one of several processes has for itself must not stop that one alone.
        self._is_bad |= loss_is_bad and not runner.distributed
        self._is_bad |= scale is not None and previous is not None and scale < previous
        self._files.append(_files(data_batch))
        self._between_steps = not has_stepped(runner.optim_wrapper)
        if self._between_steps:
            return
        if not self._is_bad:
            self._bad_in_a_row = 0
            return
        self._put_back()
        self._bad_in_a_row += 1
        what = f'iteration {runner.iter + 1}: no finite gradients ({_describe(outputs)})'
        files = ', '.join(self._files)
        print_log(f'{what}, the step is left out; images: {files}', logger='current', level=logging.WARNING)
        if self._bad_in_a_row >= self.max_consecutive:
            raise UsageError(self._report(runner, what, files, data_batch))

    def after_train(self, runner: Runner) -> None:
        """Lets the optimizer go."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _check_gradients(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        parameters = [p for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        if parameters and not are_finite([p.grad for p in parameters]):
            self._is_bad = True
            for parameter in parameters:
                parameter.grad = None  # an optimizer passes over parameters without a gradient

    def _put_back(self) -> None:
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)

    @staticmethod
    def _loss_scale(runner: Runner) -> float | None:
        get_scale = getattr(getattr(runner.optim_wrapper, 'loss_scaler', None), 'get_scale', None)
        return None if get_scale is None else get_scale()

    def _report(self, runner: Runner, what: str, files: str, data_batch: object) -> str:
        where = find_non_finite(runner.model, data_batch)
        self._put_back()
        hook = SafeCheckpointHook.of(runner)
        try:
            kept = hook.save_extra(runner, 'before_nonfinite', runner.iter + 1) if hook else None
            kept = kept or find_last_good(runner.work_dir) or 'none was written'
        except UsageError as error:
            kept = str(error)
        return (
            f'{self._bad_in_a_row} iterations in a row were not finite, the training stops. Last {what}. Images: '
            f'{files}. {where}. Checkpoint from before: {kept}. Lower the learning rate, clip gradients '
            '(optim_wrapper.clip_grad), or look at these images'
        )


def find_non_finite(model: nn.Module, data_batch: object) -> str:
    """Runs the backbone on a batch again and says where the first number is that is not finite.

    Args:
        model (nn.Module): Detector, segmentor or classifier of OpenMMLab, wrapped or not.
        data_batch (dict): What its data loader gave.

    Returns:
        str: A sentence without its full stop.
    """
    model = getattr(model, 'module', model)
    writes: dict[str, int] = {}
    found: list[str] = []

    def look(name: str, cell: nn.Module, x: Tensor, h: Tensor) -> None:
        writes[name] = writes.get(name, 0) + 1
        bad = [what for what, t in (('its input', x), ('its new state', h)) if not t.isfinite().all()]
        if bad and not found:
            where = f'{name}, at write {writes[name]}: {bad[0]} is not finite'
            found.append(f'The first S6LA stage whose state is not finite is {where}')

    handles = watch_cells(model, look)
    try:
        with torch.no_grad():
            inputs = model.data_preprocessor(data_batch, True)['inputs']
            if not all(image.isfinite().all() for image in inputs):
                return 'The images themselves are not finite after the data preprocessor'
            outs = model.backbone(inputs)
    except Exception as error:  # the reason for the stop matters more than this one
        return f'Where it began could not be found ({type(error).__name__}: {error})'
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    if not all(out.isfinite().all() for out in outs):
        return 'All states are finite, the feature maps of the backbone are not'
    return 'All states and feature maps of the backbone are finite: it begins in the neck, the heads or the loss'


def _describe(outputs: dict | None) -> str:
    numbers = {key: torch.as_tensor(value).item() for key, value in (outputs or {}).items()}
    return ', '.join(f'{key} {number:.4g}' for key, number in numbers.items()) or 'no losses given'


def _files(data_batch: object) -> str:
    samples = data_batch.get('data_samples', ()) if isinstance(data_batch, dict) else ()
    paths = [getattr(sample, 'img_path', None) for sample in samples or ()]
    return ', '.join(path for path in paths if path) or 'not known'
