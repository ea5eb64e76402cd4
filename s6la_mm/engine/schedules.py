"""Whose schedule counts when a training is resumed with another config."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop, Runner

from ..common.errors import UsageError

_WAY_OUT = 'resume with the config that wrote it, or set load_from to start anew from its weights'
# Where a scheduler stands, or what it acts on; the other arguments of its class are the schedule.
_NO_OPTIONS = {'optimizer', 'param_name', 'last_step', 'verbose'}


def compare_schedules(runner: Runner, checkpoint: dict) -> None:
    """Logs a warning if the config has another schedule than the checkpoint to resume from, and says which one counts.

    mmengine gives schedulers and optimizers the options that are in the checkpoint, silently; the end of the training
    is the config's.

    Args:
        runner (Runner): Whose schedulers and optimizer are as the config has them.
        checkpoint (dict): What was loaded.

    Raises:
        UsageError: If the state of the optimizer is one of another type, or of other groups of parameters.
    """
    from_checkpoint = [
        *_differences_of_schedulers(runner.param_schedulers, checkpoint.get('param_schedulers')),
        *_differences_of_optimizers(runner.optim_wrapper, checkpoint.get('optimizer')),
    ]
    from_config = list(_what_the_config_decides(runner, checkpoint))
    if not from_checkpoint and not from_config:
        return
    text = 'The checkpoint that is resumed from has another schedule than the config.'
    if from_checkpoint:
        text += f' What is in the checkpoint counts for {"; ".join(from_checkpoint)}.'
    if from_config:
        text += f' The config counts for {"; ".join(from_config)}.'
    text += " For the config's own param_scheduler and learning rate, set load_from to the checkpoint, do not resume."
    print_log(text, logger='current', level=logging.WARNING)


def _pairs(own: Any, saved: Any, name: str) -> Iterator[tuple[str, list, list]]:
    """Lists of the same optimizer; of several, each has a name."""
    if isinstance(own, dict):
        for key in own:
            yield f'{name}.{key}', own[key], (saved or {}).get(key, [])
    else:
        yield name, own or [], saved or []


def _differences_of_schedulers(own: Any, saved: Any) -> Iterator[str]:
    for name, schedulers, states in _pairs(own, saved, 'param_scheduler'):
        for number, (scheduler, state) in enumerate(zip(schedulers, states)):
            where = f'{name}[{number}] ({type(scheduler).__name__})'
            options = _options(scheduler)
            if options.keys() - state.keys():
                yield f'where {where} goes on; its state is that of a scheduler of another type, without ' + ', '.join(
                    sorted(options.keys() - state.keys())
                )
            for key in sorted(options.keys() & state.keys()):
                if options[key] != state[key]:
                    yield f'{where}: {key} {_short(state[key])}, not {_short(options[key])}'


def _options(scheduler: Any) -> dict[str, Any]:
    classes = [cls for cls in type(scheduler).__mro__ if '__init__' in vars(cls) and cls is not object]
    names = {name for cls in classes for name in inspect.signature(cls).parameters} - _NO_OPTIONS
    return {name: value for name, value in scheduler.state_dict().items() if name in names}


def _differences_of_optimizers(wrapper: Any, saved: Any) -> Iterator[str]:
    wrappers = getattr(wrapper, 'optim_wrappers', {None: wrapper})  # an OptimWrapperDict has several
    for name, part in wrappers.items():
        state = (saved or {}) if name is None else (saved or {}).get(name, {})
        if 'param_groups' not in state or not hasattr(part, 'optimizer'):  # such as DeepSpeed's
            continue
        where = 'optimizer' if name is None else f'optimizer {name}'
        own, there = part.optimizer.param_groups, state['param_groups']
        if len(own) != len(there):
            raise UsageError(
                f'the {where} of the checkpoint to resume from has {len(there)} groups of parameters, {len(own)} in '
                f'the config (optim_wrapper.paramwise_cfg, constructor): {_WAY_OUT}'
            )
        found: dict[str, str] = {}
        for group, group_there in zip(own, there):
            # A scheduler of the momentum writes the first of Adam's betas, and notes it under a name of its own.
            moved = {'betas'} if 'initial_momentum' in {**group, **group_there} else set()
            defaults = part.optimizer.defaults.keys() - moved
            numbers = {key: value for key, value in group.items() if key in defaults and _is_setting(value)}
            lacking = numbers.keys() - group_there.keys()
            if lacking:
                raise UsageError(
                    f'the {where} of the checkpoint to resume from has no {", ".join(sorted(lacking))}: it is of '
                    f'another type than {type(part.optimizer).__name__}, the optimizer of the config: {_WAY_OUT}'
                )
            for key in numbers:
                # A scheduler has changed the value: what it began with tells.
                names = [f'initial_{key}' in entry for entry in (group, group_there)]
                shown = f'initial_{key}' if all(names) else key
                if any(names) == all(names) and group[shown] != group_there[shown]:
                    found.setdefault(key, f'{where} {key} {_short(group_there[shown])}, not {_short(group[shown])}')
        yield from found.values()


def _is_setting(value: Any) -> bool:
    """Whether an option of an optimizer is a number or several; torch adds others in each release, with defaults."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number or isinstance(value, tuple)


def _what_the_config_decides(runner: Runner, checkpoint: dict) -> Iterator[str]:
    key = 'max_iters' if isinstance(runner.train_loop, IterBasedTrainLoop) else 'max_epochs'
    before = checkpoint.get('message_hub', {}).get('runtime_info', {}).get(key)
    now = getattr(runner, key)
    if before is not None and before != now:
        yield f'train_cfg.{key}: {now}, not {before}'
    for name, schedulers, states in _pairs(
        runner.param_schedulers, checkpoint.get('param_schedulers'), 'param_scheduler'
    ):
        if len(schedulers) != len(states):
            yield f'the number of schedulers: {len(schedulers)} in {name}, not {len(states)}'


def _short(value: Any) -> str:
    text = repr(dict(value)) if isinstance(value, dict) else repr(value)
    return text if len(text) < 60 else f'{text[:57]}...'
