"""The hooks of this package; all are registered in mmengine's registry."""

from .checkpoint import SafeCheckpointHook
from .config_check import ConfigCheckHook
from .label_check import LabelCheckHook
from .nonfinite import NonFiniteHook
from .preemption import PREEMPTED_STATUS, PreemptionHook
from .state_monitor import StateMonitorHook

__all__ = [
    'PREEMPTED_STATUS',
    'ConfigCheckHook',
    'LabelCheckHook',
    'NonFiniteHook',
    'PreemptionHook',
    'SafeCheckpointHook',
    'StateMonitorHook',
]
