"""Trainings that survive: loops, checkpoints and hooks for mmengine's runners."""

from .checkpoint_hook import SafeCheckpointHook
from .fsdp import CPUFullyShardedDataParallel, S6LAFSDPStrategy, s6la_wrap_policy
from .loops import ResumableEpochBasedTrainLoop, ResumableIterBasedTrainLoop
from .nonfinite_hook import NonFiniteHook
from .preemption_hook import PREEMPTED_STATUS, PreemptionHook
from .resuming import find_last_good, make_resumable, problem_of
from .state_monitor_hook import StateMonitorHook

__all__ = [
    'PREEMPTED_STATUS',
    'CPUFullyShardedDataParallel',
    'NonFiniteHook',
    'PreemptionHook',
    'ResumableEpochBasedTrainLoop',
    'ResumableIterBasedTrainLoop',
    'S6LAFSDPStrategy',
    'SafeCheckpointHook',
    'StateMonitorHook',
    'find_last_good',
    'make_resumable',
    'problem_of',
    's6la_wrap_policy',
]
