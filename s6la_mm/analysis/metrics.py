"""The metrics that a training has logged, whatever its evaluator calls them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from mmengine.config import Config

from ..common.configs import hooks_of

# What mmengine logs beside them; StateMonitorHook's curves begin with s6la/.
_NO_METRICS = {'step', 'iter', 'epoch', 'time', 'data_time', 'memory', 'lr', 'base_lr', 'momentum', 'grad_norm'}
# Of losses, errors and distances, such as those of depth estimation.
_LESS = re.compile(r'(loss|error|rmse|rms|\bm[as]e|abs_rel|sq_rel|silog|log10|\bfid|perplexity|distance)', re.I)


def metrics_in(entry: dict) -> dict[str, float]:
    """The metrics of an entry of the log; empty if it is none of an evaluation.

    Args:
        entry (dict): A line of ``scalars.json``.

    Example:
        >>> metrics_in({'pascal_voc/mAP': 0.5, 'time': 0.1, 'step': 3}), metrics_in({'loss': 1.0, 'step': 3})
        ({'pascal_voc/mAP': 0.5}, {})
    """
    if 'loss' in entry:  # of the training
        return {}
    return {
        key: value
        for key, value in entry.items()
        if isinstance(value, (int, float)) and key not in _NO_METRICS and not key.startswith('s6la/')
    }


def main_metrics(keys: Sequence[str]) -> list[str]:
    """Those of which the others are details: ``bbox_mAP`` without ``bbox_mAP_50``, ``bbox_AP`` without ``bbox_APs``.

    Args:
        keys (Sequence[str]): All keys of an evaluation.

    Example:
        >>> main_metrics(['coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/bbox_mAP_s', 'coco/segm_mAP', 'mIoU'])
        ['coco/bbox_mAP', 'coco/segm_mAP', 'mIoU']
    """
    return [key for key in keys if not any(key != other and key.startswith(other) for other in keys)]


def is_lower_better(key: str, cfg: Config) -> bool:
    """Whether a metric is better when it is lower: as a hook or scheduler of the config says, else by its name.

    Args:
        key (str): The metric.
        cfg (Config): Whose ``save_best``, ``EarlyStoppingHook`` and ``ReduceOnPlateauLR`` may have a ``rule``.

    Example:
        >>> hooks = dict(checkpoint=dict(save_best='coco/drift', rule='less'))
        >>> is_lower_better('coco/drift', Config(dict(default_hooks=hooks))), is_lower_better('mIoU', Config())
        (True, False)
    """
    rules = dict(_rules(cfg))
    return rules[key] == 'less' if key in rules else bool(_LESS.search(key))


def best_of(values: Sequence[float], lower: bool) -> float:
    """The best of some values, NaN if none is a number.

    Example:
        >>> best_of([0.5, float('nan'), 0.25], lower=True)
        0.25
    """
    finite = [value for value in values if math.isfinite(value)]
    return (min if lower else max)(finite, default=math.nan)


def _rules(cfg: Config) -> Iterator[tuple[str, str]]:
    schedulers = cfg.get('param_scheduler') or []
    for entry in [*(schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]), *hooks_of(cfg)]:
        if not entry.get('rule'):
            continue
        keys = entry.get('save_best') or entry.get('monitor') or []
        keys = [keys] if isinstance(keys, str) else keys
        rules = [entry['rule']] * len(keys) if isinstance(entry['rule'], str) else entry['rule']
        yield from zip(keys, rules)
