"""``init_cfg=dict(type='Pretrained', ...)`` for S6LA backbones: everything that should match must match.

mmengine loads what fits and warns about the rest, so a ResNet-50 file in a ResNet-101 goes by in a log. Here new S6LA
parameters and layers that no plain checkpoint can hold may be missing; anything else is an error.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

from mmengine.logging import print_log
from mmengine.model import PretrainedInit, update_init_info
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from ..layers import STATE_LAYERS


class PretrainedMixin:
    """Makes a backbone load ``Pretrained`` init_cfgs through :func:`load_pretrained`; put it before the base class."""

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
        pretrained = [cfg for cfg in cfgs if cfg['type'] in ('Pretrained', PretrainedInit)]
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


def load_pretrained(
    module: nn.Module, checkpoint: str, prefix: str | None = None, map_location: str = 'cpu'
) -> list[str]:
    """Loads a checkpoint of the plain or of the S6LA network into an S6LA backbone, and logs what happened.

    Args:
        module (nn.Module): The backbone.
        checkpoint (str): Path, URL or ``torchvision://resnet50``: anything mmengine's CheckpointLoader takes.
        prefix (str, optional): Where the backbone is in a whole model. Defaults to None: ``'backbone.'`` if any key
            starts with it (mmdet, mmseg and mmpretrain files), else the top level. A ``module.`` before that, which
            saving a wrapped model leaves, is dropped.
        map_location (str): Defaults to ``'cpu'``.

    Returns:
        list[str]: Keys of ``module`` that the file does not have: the new parameters.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or holds more than weights, is of another architecture, or has values that
            are not finite. The module is unchanged then.
    """
    state_dict = _read(checkpoint, map_location)
    state_dict = {key[len('module.') :] if key.startswith('module.') else key: v for key, v in state_dict.items()}
    if prefix is None:
        prefix = 'backbone.' if any(key.startswith('backbone.') for key in state_dict) else ''
    elif prefix and not prefix.endswith('.'):
        prefix += '.'
    source = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
    if isinstance(module, PretrainedMixin):
        source = module.convert_checkpoint(source)
    target = module.state_dict()

    reshaped = [k for k in target if k in source and source[k].shape != target[k].shape]
    missing = [k for k in target if k not in source and not k.endswith('num_batches_tracked')]
    state, extras = _new_prefixes(module)
    # A file of an S6LA network has all of its parameters: a missing one means other options.
    may_be_new = extras if any(key.startswith(state) for key in source) else state + extras
    new = [k for k in missing if k.startswith(may_be_new)]
    left_out = [k for k in source if k not in target]
    # A head is left out as expected; a block that the backbone does not have means another depth, a part of the state
    # other options.
    parts = {k.split('.')[0] for k in target if '.' in k} | {'cells', 'carries'}
    foreign = [k for k in left_out if k.split('.')[0] in parts]
    problems = {
        'other shape': [f'{k} {tuple(source[k].shape)} against {tuple(target[k].shape)}' for k in reshaped],
        'missing from the checkpoint': [k for k in missing if k not in new],
        'not in the backbone': foreign,
    }
    if any(problems.values()):
        raise ValueError(
            f'{checkpoint} (prefix {prefix!r}) does not fit {type(module).__name__}: '
            + '; '.join(f'{len(keys)} {what}: {_shortened(keys)}' for what, keys in problems.items() if keys)
            + '. Set depth, arch, groups, deep_stem, in_channels, state_dim ... to those of the checkpoint, or give '
            'init_cfg the checkpoint of this architecture (prefix=... if the backbone is a part of a larger model).'
        )
    not_finite = [k for k, v in source.items() if k in target and v.is_floating_point() and not v.isfinite().all()]
    if not_finite:
        raise ValueError(f'{checkpoint} has NaN or Inf in {len(not_finite)} tensors: {_shortened(not_finite)}')

    matched: dict[str, Tensor] = {k: v for k, v in source.items() if k in target}
    module.load_state_dict(matched, strict=False)
    print_log(
        f'{type(module).__name__}: {len(matched)} tensors loaded from {checkpoint}; {len(new)} new: {_shortened(new)}; '
        f'{len(left_out)} left out: {_shortened(left_out)}',
        logger='current',
        level=logging.INFO,
    )
    return new


def _read(checkpoint: str, map_location: str) -> dict[str, Tensor]:
    """Reads the state dict of a file, URL or ``torchvision://`` name, with ``weights_only=True`` in every case."""
    # mmengine loads URLs through torch.hub, whose default is weights_only=False; torch refuses to be forced both ways.
    force, forbid = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
    before = {name: os.environ.pop(name, None) for name in (force, forbid)}
    os.environ[force] = '1'
    try:
        content = CheckpointLoader.load_checkpoint(checkpoint, map_location=map_location, logger='current')
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{checkpoint} does not exist: set checkpoint in the backbone's init_cfg to an existing file, "
            'or init_cfg to None to start from scratch'
        ) from None
    except OSError:
        raise  # a failed download or an unreadable disk says so itself
    except Exception as error:
        # torch's message goes on to recommend weights_only=False.
        reason = str(error).partition('Re-running')[0].partition('\n')[0].strip() or type(error).__name__
        raise ValueError(
            f'{checkpoint} cannot be loaded: it is damaged, no PyTorch file, or holds more than weights ({reason})'
        ) from error
    finally:
        os.environ.pop(force)
        os.environ.update({name: value for name, value in before.items() if value is not None})
    if not isinstance(content, dict):
        raise ValueError(f'{checkpoint} holds a {type(content).__name__}, not a dict of weights')
    # Files of the authors of PVT and DeiT say 'model'.
    return content.get('state_dict', content.get('model', content))


def _new_prefixes(module: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Starts of the keys that a plain checkpoint need not have: of S6LA, and of plugins, DCN offsets and the like."""
    state, extras = ['initial_state'], []
    if isinstance(module, PretrainedMixin):
        extras += module.optional_keys()
    for name, child in module.named_modules():
        if isinstance(child, STATE_LAYERS):
            state.append(f'{name}.')
        if name.endswith('.conv_offset'):
            extras.append(f'{name}.')
        if getattr(child, 'with_plugins', False):
            plugins = [p for i in (1, 2, 3) for p in getattr(child, f'after_conv{i}_plugin_names')]
            extras += [f'{name}.{plugin}.' for plugin in plugins]
    return tuple(state), tuple(extras)


def _shortened(keys: Iterable[str], limit: int = 6) -> str:
    keys = list(keys)
    return ', '.join(keys[:limit]) + (f' and {len(keys) - limit} more' if len(keys) > limit else '') if keys else 'none'
