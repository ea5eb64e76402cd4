"""Curves of the state: does it grow, does it forget, does it select?"""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ...layers.probes import watch_cells


@HOOKS.register_module()
class StateMonitorHook(Hook):
    """Sends curves of every S6LA stage to the visualizers of the config, such as TensorBoard.

    For each cell ``s6la/<stage>/…``: ``state_rms`` (root mean square of the state after the stage's last write),
    ``delta_min``, ``delta_mean``, ``delta_max`` (step sizes Δ of all writes) and ``decay`` (mean of exp(Δ A): 1 keeps
    the state, 0 forgets it). They are computed in one iteration out of ``interval``, in the first process; the others
    cost nothing.

    Args:
        interval (int): Iterations from one point of the curves to the next. Defaults to 100.

    Example:
        >>> custom_hooks = [dict(type='StateMonitorHook', interval=100)]
    """

    def __init__(self, interval: int = 100) -> None:
        if interval < 1:
            raise ValueError(f'interval={interval!r} is not allowed: it must be 1 or more')
        self.interval = interval
        self._handles: list = []
        self._seen: dict[str, list[Tensor]] = {}  # per cell, per write: the five numbers

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Starts to look, if it is the iteration."""
        if is_main_process() and self.every_n_train_iters(runner, self.interval):
            self._handles = watch_cells(runner.model, self._look)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Sends what was seen."""
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        scalars: dict[str, float] = {}
        for name, writes in self._seen.items():
            rms, low, mean, high, decay = torch.stack(writes).cpu().unbind(1)
            values = dict(
                state_rms=rms[-1], delta_min=low.min(), delta_mean=mean.mean(), delta_max=high.max(), decay=decay.mean()
            )
            stage = name.rpartition('cells.')[2]
            scalars |= {f's6la/{stage}/{key}': float(value) for key, value in values.items()}
        self._handles, self._seen = [], {}
        if scalars:
            runner.visualizer.add_scalars(scalars, step=runner.iter + 1)

    @torch.no_grad()
    def _look(self, name: str, cell: nn.Module, x: Tensor, h: Tensor) -> None:
        with torch.autocast(x.device.type, enabled=False):
            delta, decay = cell.gates(x.to(cell.dt_proj.weight.dtype))
        low, high = delta.aminmax()
        seen = (h.float().square().mean().sqrt(), low, delta.mean(), high, decay.mean())
        self._seen.setdefault(name, []).append(torch.stack(seen))
