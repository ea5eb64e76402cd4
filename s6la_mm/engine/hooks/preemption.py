"""A training that is told to go saves first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any

import torch
from mmengine.dist import barrier
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, distributed

from ...common.files import write_atomically
from .checkpoint import SafeCheckpointHook, has_stepped

# EX_TEMPFAIL of sysexits.h: the job failed for now and may be started again.
PREEMPTED_STATUS = 75
# torchrun ends with 1 whatever its workers end with; tools/dist_train.sh reads the status in the file that this names.
STATUS_FILE = 'S6LA_STATUS_FILE'


@HOOKS.register_module()
class PreemptionHook(Hook):
    """Saves a checkpoint and exits with status 75 after the iteration in which a signal arrives.

    Slurm sends SIGTERM before it takes the nodes away (and another signal earlier, with ``--signal``); torchrun passes
    it on. The processes agree on the iteration after which they stop. Needs ``SafeCheckpointHook``.

    Args:
        signals (Sequence[str]): Names of the signals. Defaults to SIGTERM and SIGUSR1.
        interval (int): Iterations between two agreements of several processes, more where gradients are accumulated;
            a single one looks after each. Defaults to 5.

    Example:
        >>> custom_hooks = [dict(type='PreemptionHook')]
    """

    priority = 'LOWEST'  # after the checkpoint, the schedulers and the moving average of the iteration

    def __init__(self, signals: Sequence[str] = ('SIGTERM', 'SIGUSR1'), interval: int = 5) -> None:
        unknown = [name for name in signals if not hasattr(signal, name)]
        if unknown or interval < 1:
            raise ValueError(
                f'signals={signals!r}, interval={interval!r}: names such as SIGTERM, and 1 or more, are allowed'
            )
        self.signals = [getattr(signal, name) for name in signals]
        self.interval = interval
        self._received: signal.Signals | None = None
        self._group = None
        self._since_agreement = 0
        self._previous: dict = {}

    def before_train(self, runner: Runner) -> None:
        """Takes over the signals; only the main thread may."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._previous = {number: signal.signal(number, self._note) for number in self.signals}
        is_running = torch.ones(1, dtype=torch.bool).share_memory_()
        # At the exit of this process, whatever ends it, before multiprocessing sends its workers SIGTERM.
        Finalize(None, is_running.zero_, exitpriority=0)
        for loader in (runner.train_dataloader, runner.val_loop and runner.val_dataloader):
            if loader and loader.num_workers:
                loader.worker_init_fn = partial(_start_worker, self.signals, is_running, loader.worker_init_fn)
        if runner.distributed:
            # Of its own and on the CPU: the others would wait for the device at each agreement.
            self._group = distributed.new_group(backend='gloo')

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Stops here if a signal has come."""
        self._since_agreement += 1
        # Gradients that wait for those of further iterations are in no checkpoint.
        if has_stepped(runner.optim_wrapper) and self._agree():
            self._leave(runner, runner.iter + 1)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Stops here if a signal has come; the evaluation is made up for after the resume."""
        loader = runner.val_dataloader
        # The processes may differ by one batch at the end.
        is_common = (batch_idx + 1) * runner.world_size * (loader.batch_size or 1) <= len(loader.dataset)
        self._since_agreement += 1
        if is_common and self._agree():
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # has put the averaged weights into the model for the evaluation
                    hook.after_val_epoch(runner)
            self._leave(runner, runner.iter)

    def after_train(self, runner: Runner) -> None:
        """Gives the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)

    def _agree(self) -> bool:
        if self._group is None:
            return self._received is not None
        if self._since_agreement < self.interval:
            return False
        self._since_agreement = 0
        stops = torch.tensor(self._received is not None, dtype=torch.uint8)
        distributed.all_reduce(stops, distributed.ReduceOp.MAX, self._group)
        return bool(stops)

    def _leave(self, runner: Runner, iteration: int) -> None:
        hook = SafeCheckpointHook.of(runner)
        name = self._received.name if self._received else 'a signal to another process'
        if hook is None:
            print_log(
                f'{name}: stopped at iteration {iteration}; no SafeCheckpointHook, nothing saved', logger='current'
            )
        else:
            path = hook.save_extra(runner, 'preempted', iteration)
            print_log(f'{name}: {path} saved, the training stops; --resume goes on', logger='current')
        if os.environ.get('LOCAL_RANK', '0') == '0' and STATUS_FILE in os.environ:  # each node has its own
            write_atomically(os.environ[STATUS_FILE], str(PREEMPTED_STATUS))
        barrier()  # torchrun ends the others when the first one is gone
        raise SystemExit(PREEMPTED_STATUS)


def _start_worker(signals: list[signal.Signals], is_running: Tensor, init_fn: Callable | None, worker_id: int) -> None:
    """Lets a data loader's worker, to which Slurm and torchrun send their signals too, outlive the last iterations.

    It ends with its training; and if that is too busy to end it, a minute after the signal.
    """

    def note(*_: Any) -> None:
        if not is_running:
            os._exit(0)  # as PyTorch's own handler, which this one replaces, when its training exits
        signal.alarm(60)

    for number in signals:
        signal.signal(number, note)
    if init_fn is not None:
        init_fn(worker_id)
