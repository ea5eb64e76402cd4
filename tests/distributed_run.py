"""Trains the toy model in one process of several: ``python -m torch.distributed.run … THIS_FILE WORK_DIR BATCH``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from toy_runner import ToyModel, build

from s6la_mm.engine.cpu import init_cpu_process_group


class Losses(Hook):
    """The losses of this process."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.values.append(outputs['loss'].item())


def train(work_dir: Path, batch: int, launcher: str = 'none') -> tuple[list[float], dict]:
    """Nine iterations with batch norm in evaluation mode and without dropout: the rest is the same for any split."""
    cfg = Config(dict(launcher=launcher))
    init_cpu_process_group(cfg)
    torch.manual_seed(0)
    losses = Losses()
    runner = build(
        work_dir,
        batch=batch,
        launcher=launcher,
        model_wrapper_cfg=cfg.get('model_wrapper_cfg'),
        model=ToyModel(norm_eval=True, dropout=0.0),
        hooks=[losses],
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
    )
    runner.train()
    model = getattr(runner.model, 'module', runner.model)
    return losses.values, model.state_dict()


if __name__ == '__main__':
    work_dir, batch = Path(sys.argv[1]), int(sys.argv[2])
    result = train(work_dir, batch, 'pytorch')
    torch.save(result, work_dir / f'rank{torch.distributed.get_rank()}.pt')
