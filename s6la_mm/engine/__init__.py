"""Trainings that survive: loops, checkpoints, hooks and wrappers for mmengine's runners."""

from .cpu import CPUAmpOptimWrapper, CPUDistributedDataParallel
from .fsdp import CPUFullyShardedDataParallel, S6LAFSDPStrategy, s6la_wrap_policy
from .hooks import (
    PREEMPTED_STATUS,
    ConfigCheckHook,
    LabelCheckHook,
    NonFiniteHook,
    PreemptionHook,
    SafeCheckpointHook,
    StateMonitorHook,
)
from .loops import ResumableEpochBasedTrainLoop, ResumableIterBasedTrainLoop
from .resuming import find_last_good, make_resumable, problem_of
from .runner import build_runner

__all__ = [
    'PREEMPTED_STATUS',
    'CPUAmpOptimWrapper',
    'CPUDistributedDataParallel',
    'CPUFullyShardedDataParallel',
    'ConfigCheckHook',
    'LabelCheckHook',
    'NonFiniteHook',
    'PreemptionHook',
    'ResumableEpochBasedTrainLoop',
    'ResumableIterBasedTrainLoop',
    'S6LAFSDPStrategy',
    'SafeCheckpointHook',
    'StateMonitorHook',
    'build_runner',
    'find_last_good',
    'make_resumable',
    'problem_of',
    's6la_wrap_policy',
]
