"""Layer-wise learning-rate decay for whatever stands on a backbone that knows the depth of its parameters.

mmpretrain's constructor asks the model for ``get_layer_depth``, which detectors and segmentors do not have; mmdet's and
mmseg's know the names of a few backbones, and let ``custom_keys`` say nothing about weight decay.
"""

from __future__ import annotations

from typing import Any

from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from .state_decay import S6LAOptimWrapperConstructor

_FSDP = '_fsdp_wrapped_module.'  # what torch puts into the names of parameters of wrapped modules


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(S6LAOptimWrapperConstructor):
    """``S6LAOptimWrapperConstructor`` with the learning rate multiplied by a power of ``layer_decay_rate``.

    Parameters of the last layer of ``model.backbone`` have the rate multiplied by ``layer_decay_rate`` once, those of
    the layer before twice, and so on (BEiT, arXiv 2106.08254; ViTDet, arXiv 2203.16527); heads and necks keep theirs.
    ``paramwise_cfg`` takes ``layer_decay_rate`` and all that mmengine's default constructor takes.

    Raises:
        ValueError: If ``layer_decay_rate`` is missing or not in (0, 1], or ``model.backbone`` has no
            ``get_layer_depth``.

    Example:
        >>> optim_wrapper = dict(
        ...     constructor='LayerDecayOptimWrapperConstructor',
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.1),
        ...     paramwise_cfg=dict(layer_decay_rate=0.7, flat_decay_mult=0.0))
    """

    def finish_params(self, params: list[dict], model: nn.Module) -> None:
        """Changes the groups of a whole model, each of one parameter, in place."""
        super().finish_params(params, model)
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if rate is None or not 0 < rate <= 1:
            raise ValueError(f'layer_decay_rate={rate} in paramwise_cfg must be a number in (0, 1]')
        backbone: Any = getattr(model, 'backbone', None)
        if not hasattr(backbone, 'get_layer_depth'):
            name = type(backbone).__name__
            raise ValueError(f'layer_decay_rate={rate} needs a backbone with get_layer_depth, {name} has none')
        names = {id(parameter): name.replace(_FSDP, '') for name, parameter in model.named_parameters()}
        for group in params:
            (parameter,) = group['params']
            depth, num_depths = backbone.get_layer_depth(names[id(parameter)], 'backbone.')
            group['lr'] = group.get('lr', self.base_lr) * rate ** (num_depths - 1 - depth)
