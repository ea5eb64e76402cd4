"""A look at what model and data must agree on, before the first iteration."""

from __future__ import annotations

import logging

from mmengine.dist import get_world_size
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...common.configs import metainfo_of, unwrapped
from ...common.errors import UsageError
from ..config_checks import (
    class_problems,
    file_problems,
    learning_rate_advice,
    learns_the_classes,
    metric_problems,
)


@HOOKS.register_module()
class ConfigCheckHook(Hook):
    """Refuses heads with other classes than the data, and metrics with other classes than the validation set.

    A learning rate that is meant for another batch size is a warning. ``tools/train.py`` brings this hook.

    Example:
        >>> custom_hooks = [dict(type='ConfigCheckHook')]
    """

    def before_train(self, runner: Runner) -> None:
        """Looks at all that the runner has built.

        Raises:
            UsageError: If something does not fit.
        """
        model = unwrapped(runner.model)
        loaders = dict(train=runner.train_dataloader)
        metrics: list[BaseMetric] = []
        if runner.val_loop is not None:
            loaders['val'] = runner.val_dataloader
            if not hasattr(runner.val_evaluator, 'dataset_prefixes'):  # a metric for each of several data sets
                metrics = runner.val_evaluator.metrics
        metainfo = {split: metainfo_of(loader.dataset) for split, loader in loaders.items()}
        problems = class_problems(model, metainfo)
        if learns_the_classes(model):
            problems += [text for split, loader in loaders.items() for text in file_problems(split, loader.dataset)]
            problems += metric_problems(metrics, metainfo.get('val', {}).get('classes') or ())
        if problems:
            raise UsageError(
                f"{'; '.join(problems)}: set num_classes of the heads to the data's, or metainfo=dict(classes=...) of "
                'the data sets'
            )
        advice = learning_rate_advice(runner.cfg, get_world_size())
        if advice:
            print_log(advice, logger='current', level=logging.WARNING)
