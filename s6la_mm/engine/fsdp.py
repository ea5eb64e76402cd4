"""Sharding S6LA networks with FSDP: which modules are gathered together."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.device import get_device
from mmengine.model.wrappers import MMFullyShardedDataParallel
from mmengine.optim import BaseOptimWrapper
from mmengine.registry import FUNCTIONS, MODEL_WRAPPERS, STRATEGIES
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..common.errors import UsageError
from ..compat import FSDP_RUNS_ON_CPU
from ..layers import S6LAMapCell, S6LATokenCell


@FUNCTIONS.register_module()
def s6la_wrap_policy(
    module: nn.Module, recurse: bool, nonwrapped_numel: int, units: tuple[str, ...] = ('FPN',)
) -> bool:
    """Makes each S6LA backbone one unit of FSDP, and necks another; the heads stay with the whole model.

    A convolutional backbone reads the weights of a stage's cell and of its blocks outside of their own forward passes:
    the write and the next block's first convolution are one (``S6LAMapCell.project_with``). A unit for each block would
    find them not gathered. Heads are called by ``loss`` and ``predict``, not as modules.

    Args:
        module (nn.Module): A module of the model.
        recurse (bool): FSDP asks whether to look at the children, else whether this one is a unit.
        nonwrapped_numel (int): Parameters that are in no unit yet; not used.
        units (tuple[str]): Names of further classes that are units, if they are called as modules. Defaults to
            ``('FPN',)``.

    Returns:
        bool: The answer.

    Example:
        >>> strategy = dict(type='S6LAFSDPStrategy', model_wrapper=dict(auto_wrap_policy=dict(type='s6la_wrap_policy')))
    """
    is_backbone = any(isinstance(part, (S6LAMapCell, S6LATokenCell)) for part in _cells(module))
    return recurse or is_backbone or type(module).__name__ in units


def _cells(module: nn.Module) -> list[nn.Module]:
    cells = getattr(module, 'cells', None)
    return list(cells.children()) if isinstance(cells, nn.Module) else []


@MODEL_WRAPPERS.register_module()
class CPUFullyShardedDataParallel(MMFullyShardedDataParallel):
    """``MMFullyShardedDataParallel`` on a machine without an accelerator, through gloo."""

    def __init__(self, module: nn.Module, device_id: int | None = None, **kwargs: Any) -> None:
        super().__init__(module=module, device_id=torch.device('cpu'), **kwargs)


def _clip_all_shards(model: FullyShardedDataParallel, parameters: list[Tensor], **kwargs: Any) -> Tensor:
    return model.clip_grad_norm_(**kwargs)


@STRATEGIES.register_module()
class S6LAFSDPStrategy(FSDPStrategy):
    """``FSDPStrategy`` that wraps as :func:`s6la_wrap_policy` says, clips, resumes, and works on the CPU too.

    With the torch of today mmengine's own strategy cannot resume: it gives ``optim_state_dict_to_load`` its arguments
    in the order of torch 2.0. With ``clip_grad`` it scales each shard by the norm of that shard, not of all gradients.
    Checkpoints are those of a model that is not sharded.

    Args:
        model_wrapper (dict, optional): Options of ``MMFullyShardedDataParallel``, before the defaults of this package.
        state_dict_cfg (str | dict): Defaults to ``'full'``.
        **kwargs: Those of ``FSDPStrategy``.

    Raises:
        UsageError: If there is no accelerator, and this torch cannot do without.

    Example:
        >>> runner_type = 'FlexibleRunner'
        >>> strategy = dict(type='S6LAFSDPStrategy')
    """

    def __init__(
        self, *, model_wrapper: dict | None = None, state_dict_cfg: str | dict = 'full', **kwargs: Any
    ) -> None:
        is_cpu = get_device() == 'cpu'
        if is_cpu and not FSDP_RUNS_ON_CPU:
            raise UsageError(
                f'strategy.type S6LAFSDPStrategy: without a GPU it needs torch 2.4 or newer, and here is '
                f'{torch.__version__}; leave strategy and runner_type out to train with DDP'
            )
        defaults = dict(
            type='CPUFullyShardedDataParallel' if is_cpu else 'MMFullyShardedDataParallel',
            auto_wrap_policy=dict(type='s6la_wrap_policy'),
            use_orig_params=True,  # frozen and trained parameters in one unit; names for paramwise_cfg
        )
        if is_cpu and state_dict_cfg == 'full':
            # mmengine's would offload to the CPU, which on the CPU frees the tensors that are saved.
            options = dict(rank0_only=True, offload_to_cpu=False)
            state_dict_cfg = dict(
                state_dict_type='FULL_STATE_DICT',
                state_dict_config=dict(type='FullStateDictConfig', **options),
                optim_state_dict_config=dict(type='FullOptimStateDictConfig', **options),
            )
        super().__init__(model_wrapper=defaults | (model_wrapper or {}), state_dict_cfg=state_dict_cfg, **kwargs)

    def build_optim_wrapper(self, optim_wrapper: dict, model: nn.Module | None = None) -> BaseOptimWrapper:
        """As the base class does; ``clip_grad`` then takes the norm over all shards, not over each its own."""
        wrapper = super().build_optim_wrapper(optim_wrapper, model)
        if getattr(wrapper, 'clip_grad_kwargs', None) and wrapper.clip_func is nn.utils.clip_grad_norm_:
            wrapper.clip_func = partial(_clip_all_shards, model)
        return wrapper

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Loads the state of an optimizer that is not sharded."""
        optimizer = self.optim_wrapper.optimizer
        self.optim_wrapper.load_state_dict(
            FullyShardedDataParallel.optim_state_dict_to_load(
                model=self.model, optim=optimizer, optim_state_dict=state_dict
            )
        )
