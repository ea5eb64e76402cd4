"""Building the runner of a config, on machines without an accelerator too."""

from __future__ import annotations

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..common.configs import name_classes, package_of, without_worker_options
from .cpu import init_cpu_process_group


def build_runner(cfg: Config) -> Runner:
    """Build the config's runner (``runner_type`` if it has one), on machines without an accelerator too.

    Args:
        cfg (Config): A complete config; changed in place.

    Returns:
        Runner: Ready for ``train()`` or ``test()``.
    """
    if package_of(cfg) == 'mmpretrain':
        _fill_mmpretrain_dataloaders(cfg)
    without_worker_options(cfg)
    init_cpu_process_group(cfg)
    name_classes(cfg)  # which the runner writes to the work dir
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def _fill_mmpretrain_dataloaders(cfg: Config) -> None:
    """Give dataloaders what mmpretrain's configs leave to mmpretrain's own tools."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader is not None:
            loader.setdefault('pin_memory', get_device() != 'cpu')
            loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)
            loader.setdefault('collate_fn', dict(type='default_collate'))
