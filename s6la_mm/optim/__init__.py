"""What optimizers need that the OpenMMLab packages lack."""

from .layer_decay import LayerDecayOptimWrapperConstructor
from .state_decay import S6LAOptimWrapperConstructor, undecayed_parameters, watch_weight_decay

__all__ = [
    'LayerDecayOptimWrapperConstructor',
    'S6LAOptimWrapperConstructor',
    'undecayed_parameters',
    'watch_weight_decay',
]
