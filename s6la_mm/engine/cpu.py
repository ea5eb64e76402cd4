"""What mmengine leaves out for machines without an accelerator: bfloat16 autocast and several processes."""

from __future__ import annotations

import atexit
import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS, OPTIM_WRAPPERS
from torch import nn

from ..common.errors import UsageError
from ..config_types import type_name


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """``OptimWrapper`` whose forward passes run under bfloat16 autocast on the CPU.

    mmengine's ``AmpOptimWrapper`` refuses to start without an accelerator. bfloat16 has float32's range, so
    there is no loss scaling.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """See ``OptimWrapper.optim_context``."""
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """``MMDistributedDataParallel`` without what needs an accelerator.

    mmengine's ``device_ids``, which a CPU model refuses, are left out. ``SyncBN`` layers, for which torch has no CPU
    kernels, become ``BN`` layers with the same parameters, as mmengine does for one process.
    """

    def __init__(self, module: nn.Module, device_ids: list[int] | None = None, **kwargs: Any) -> None:
        if any(type(layer).__name__ == 'SyncBatchNorm' for layer in module.modules()):  # torch's or mmcv's
            print_log(
                'SyncBN does not work on the CPU: each process normalises its own images (BN). Give every process at '
                'least two.',
                logger='current',
                level=logging.WARNING,
            )
            module = revert_sync_batchnorm(module)
        super().__init__(module=module, **kwargs)


def init_cpu_process_group(cfg: Config) -> None:
    """On a machine without an accelerator, let ``torchrun`` processes work together through gloo.

    mmengine's own start calls ``torch.cuda.set_device``; it is skipped where a process group exists already.

    Args:
        cfg (Config): A config, maybe with a ``launcher``; its ``model_wrapper_cfg`` is changed in place where needed.

    Raises:
        UsageError: For the launchers that are for accelerators only.
    """
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none' or get_device() != 'cpu':
        return
    if launcher != 'pytorch':
        raise UsageError(
            f'launcher={launcher!r} needs an accelerator, and none was found: check --gres, or use '
            "launcher='pytorch' (tools/dist_train.sh) for CPU processes"
        )
    torch.distributed.init_process_group('gloo')
    atexit.register(_leave_process_group)
    if type_name(cfg.get('runner_type')) == 'FlexibleRunner':  # its strategy wraps the model
        return
    unused = cfg.get('find_unused_parameters', False)
    wrapper = cfg.get('model_wrapper_cfg') or dict(broadcast_buffers=False, find_unused_parameters=unused)
    if type_name(wrapper) in ('', 'MMDistributedDataParallel'):
        cfg.model_wrapper_cfg = dict(wrapper, type='CPUDistributedDataParallel')


def _leave_process_group() -> None:
    """Ends gloo's threads while Python is still whole.

    One that lets go of a tensor during the interpreter's shutdown aborts the process (pytorch/pytorch#179291). The
    threads end when the last reference to the group goes, and a wrapped model in a reference cycle holds one.
    """
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
