"""Weight decay without the parameters of the state, which it would pull to values that mean something else.

A layer names those of its parameters, or of its children, in a class attribute ``not_decayed``. mmengine's
``norm_decay_mult`` does not know RMSNorm, and nothing in it knows A, the steps Δ and the initial state.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import torch
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

_watched: WeakSet[nn.Module] = WeakSet()


def undecayed_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of a model that its layers name in ``not_decayed``.

    Args:
        model (nn.Module): Any module, wrapped or not.

    Yields:
        nn.Parameter: One after the other.

    Example:
        >>> from s6la_mm.layers import S6LAMapCell
        >>> [tuple(parameter.shape) for parameter in undecayed_parameters(S6LAMapCell(64, state_dim=8))]
        [(8,), (8,), (8,)]
    """
    for module in model.modules():
        for name in getattr(module, 'not_decayed', ()):
            part = getattr(module, name)
            if isinstance(part, nn.Module):
                yield from part.parameters()
            elif part is not None:
                yield part


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class S6LAOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default constructor, but the parameters of the state have no weight decay.

    Everything else is as the default constructor does it, ``paramwise_cfg`` included.

    Args:
        optim_wrapper_cfg (dict): Config of the optimizer wrapper.
        paramwise_cfg (dict, optional): Options of ``DefaultOptimWrapperConstructor``. Defaults to None.

    Example:
        >>> optim_wrapper = dict(
        ...     constructor='S6LAOptimWrapperConstructor', optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05))
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        # An empty one would mean one group for all parameters.
        super().__init__(optim_wrapper_cfg, paramwise_cfg or dict(custom_keys={}))

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs: Any) -> None:
        """See ``DefaultOptimWrapperConstructor.add_params``, which calls this for each child, with a prefix."""
        super().add_params(params, module, prefix=prefix, **kwargs)
        if not prefix:
            self.finish_params(params, module)

    def finish_params(self, params: list[dict], model: nn.Module) -> None:
        """Changes the groups of a whole model, each of one parameter, in place."""
        spared = {id(parameter) for parameter in undecayed_parameters(model)}
        for group in params:
            if id(group['params'][0]) in spared:
                group['weight_decay'] = 0.0


def watch_weight_decay(module: nn.Module) -> None:
    """Logs a warning if the first optimizer step of a module decays what must not decay.

    The backbones call it in their constructor, so that any training loop is reached. Optimizers of other tensors than
    the module's are not: DeepSpeed's, FSDP's without ``use_orig_params``, those of a deep copy.

    Args:
        module (nn.Module): A backbone.
    """
    _watched.add(module)
    _look_at_every_step()


@functools.cache
def _look_at_every_step() -> None:
    register_optimizer_step_pre_hook(_look)


def _look(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    training = [module for module in _watched if module.training]
    if not training:
        return
    decay = {id(p): group.get('weight_decay') for group in optimizer.param_groups for p in group['params']}
    for module in training:
        parameters = [p for p in undecayed_parameters(module) if p.requires_grad]
        if not any(id(p) in decay for p in parameters):
            continue  # another model's optimizer
        _watched.discard(module)
        decayed = [p for p in parameters if decay.get(id(p))]
        if decayed:
            print_log(
                f'Weight decay pulls on {len(decayed)} parameters of the state of {type(module).__name__} (A, the '
                'steps, the initial state, gains of norms), to values that mean something else. Add optim_wrapper = '
                "dict(constructor='S6LAOptimWrapperConstructor') to the config",
                logger='current',
                level=logging.WARNING,
            )
