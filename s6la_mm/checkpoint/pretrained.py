"""``init_cfg=dict(type='Pretrained', ...)`` for S6LA backbones: everything that should match must match.

mmengine loads what fits and warns about the rest, so a ResNet-50 file in a ResNet-101 goes by in a log. Here new S6LA
parameters and layers that no plain checkpoint can hold may be missing; anything else is an error.
"""

from __future__ import annotations

import logging

from mmengine.logging import print_log
from mmengine.model import BaseModule, update_init_info
from torch import Tensor, nn

from ..config_types import type_name
from .matching import OTHER_CHANNELS, check_finite, is_counter, match_backbone, shortened
from .reading import read_weights
from .surgery import differs_in_channels, fit_input_channels, input_convolution


def is_pretrained(init_cfg: dict) -> bool:
    """Whether a part of an ``init_cfg`` loads a checkpoint, in whatever form its ``type`` is.

    Example:
        >>> is_pretrained(dict(type='mmengine.model.PretrainedInit')), is_pretrained(dict(type='Kaiming'))
        (True, False)
    """
    return type_name(init_cfg) in ('Pretrained', 'PretrainedInit')  # registered as, and the class


class PretrainedMixin(BaseModule):
    """Makes a backbone load ``Pretrained`` init_cfgs through :func:`load_pretrained`; put it before the base class.

    The subclass sets ``family``, which has the ``layouts`` of checkpoints that it can start from.
    """

    init_cfg: dict | list[dict] | None

    def _init_plain(self, loads_checkpoint: bool) -> None:
        super().init_weights()

    def convert_checkpoint(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adapts the backbone's part of a checkpoint as the base class does while it loads; here: not at all."""
        return state_dict

    def optional_keys(self) -> tuple[str, ...]:
        """Starts of keys that a checkpoint may lack, though they are not S6LA's: norms of more outputs, say."""
        return ()

    def init_weights(self) -> None:
        """Initialises like the base class, then loads the checkpoint of ``init_cfg`` if it names one."""
        if self.is_init:
            return super().init_weights()  # which warns
        init_cfg = self.init_cfg
        cfgs = [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg or [])
        pretrained = [cfg for cfg in cfgs if is_pretrained(cfg)]
        self.init_cfg = [cfg for cfg in cfgs if cfg not in pretrained] or None
        try:
            self._init_plain(loads_checkpoint=bool(pretrained))
        finally:
            self.init_cfg = init_cfg
        for cfg in pretrained:
            try:
                load_pretrained(self, **{key: value for key, value in cfg.items() if key != 'type'})
            except Exception:
                self._is_init = False  # what failed may be mended and tried again
                raise
            if hasattr(self, '_params_init_info'):  # absent when this backbone is the root of init_weights
                update_init_info(self, init_info=f'Pretrained from {cfg["checkpoint"]}, or new')


class InputChannelsMixin(BaseModule):
    """Lets a backbone whose checkpoints mmengine loads start from one for other images; put it before the base class.

    mmengine leaves what does not fit as it is, the first convolution too, and warns in the log. Here that is an error,
    or with ``init_cfg=dict(type='Pretrained', checkpoint=..., adapt_channels=True)`` it is fitted.
    """

    init_cfg: dict | list[dict] | None

    def init_weights(self) -> None:
        """Initialises like the base class."""
        init_cfg = self.init_cfg
        cfgs = [dict(cfg) for cfg in ([init_cfg] if isinstance(init_cfg, dict) else init_cfg or [])]
        adapts = any([cfg.pop('adapt_channels', False) for cfg in cfgs])
        name, convolution = input_convolution(self)

        def fit(state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
            given = state_dict.get(f'{prefix}weight')
            if given is None or not differs_in_channels(given, convolution):
                return
            if not adapts:
                shapes = f'{name}.weight {tuple(given.shape)} against {tuple(convolution.weight.shape)}'
                raise ValueError(
                    f'{type(self).__name__} cannot start from the checkpoint of init_cfg: {OTHER_CHANNELS}: {shapes}'
                )
            state_dict[f'{prefix}weight'] = fit_input_channels(given, convolution.in_channels)

        handle = convolution._register_load_state_dict_pre_hook(fit)
        self.init_cfg = cfgs or None
        try:
            super().init_weights()
        finally:
            self.init_cfg = init_cfg
            handle.remove()


def load_pretrained(
    module: nn.Module,
    checkpoint: str,
    prefix: str | None = None,
    map_location: str = 'cpu',
    adapt_channels: bool = False,
) -> list[str]:
    """Loads a checkpoint of the plain or of the S6LA network into an S6LA backbone, and logs what happened.

    Args:
        module (nn.Module): The backbone.
        checkpoint (str): Path, URL or ``torchvision://resnet50``: anything mmengine's CheckpointLoader takes, and
            safetensors files; from OpenMMLab, torchvision, timm or the authors of the plain network.
        prefix (str, optional): Where the backbone is in a whole model, ``'backbone.'`` in OpenMMLab's. Defaults to
            None: found out.
        map_location (str): Defaults to ``'cpu'``.
        adapt_channels (bool): Fit the first convolution to images of another number of channels, as
            :func:`~s6la_mm.checkpoint.surgery.fit_input_channels` says. Defaults to False.

    Returns:
        list[str]: Keys of ``module`` that the file does not have: the new parameters.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or holds more than weights, is of another architecture, or has values that
            are not finite. The module is unchanged then.
    """
    try:
        weights = read_weights(checkpoint, map_location=map_location)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{checkpoint} does not exist: set checkpoint in the backbone's init_cfg to an existing file, "
            'or init_cfg to None to start from scratch'
        ) from None
    try:
        match = match_backbone(weights, module, prefix=prefix, change_channels=adapt_channels)
    except ValueError as error:
        raise ValueError(f'{checkpoint} does not fit {type(module).__name__}: {error}') from None
    if match.problems:
        raise ValueError(
            f'{checkpoint} (prefix {match.prefix!r}) does not fit {type(module).__name__}: {match.describe_problems()}'
            '. Set depth, arch, groups, deep_stem, in_channels, state_dim ... to those of the checkpoint, or give '
            'init_cfg the checkpoint of this architecture (prefix=... if the backbone is a part of a larger model; '
            'tools/model_converters/convert_checkpoint.py changes state_dim and more).'
        )
    check_finite(checkpoint, match.tensors)
    module.load_state_dict(match.tensors, strict=False)
    new = [key for key in match.new() if not is_counter(key)]
    left_out = [entry.source for entry in match.entries if entry.action == 'left out']
    print_log(
        f'{type(module).__name__}: {len(match.tensors)} tensors loaded from {checkpoint} (layout {match.layout}); '
        f'{len(new)} new: {shortened(new)}; {len(left_out)} left out: {shortened(left_out)}',
        logger='current',
        level=logging.INFO,
    )
    return new
