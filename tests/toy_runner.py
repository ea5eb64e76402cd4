"""A small model with an S6LA cell, a data set with random augmentation, and a runner for them: seconds, not minutes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from torch import nn

from s6la_mm.backbones import S6LAResNet

SIZE = 24


@DATASETS.register_module()
class ToyDataset(BaseDataset):
    """Random images whose augmentation draws from the generators of Python, numpy and torch; notes what was read."""

    METAINFO = dict(classes=('a', 'b'))

    def __init__(self, length: int = 12, poison: int | None = None, **kwargs) -> None:
        self.read: list[int] = []
        self.length = length
        self.poison = poison
        super().__init__(serialize_data=False, **kwargs)

    def load_data_list(self) -> list[dict]:
        return [dict(number=number) for number in range(self.length)]

    def prepare_data(self, index: int) -> dict:
        import random

        self.read.append(index)
        image = np.random.default_rng(index).random((3, SIZE, SIZE), dtype=np.float32)
        image += np.float32(np.random.rand() + random.random()) + torch.rand(()).numpy()
        if index == self.poison:
            image[0, 0, 0] = np.nan
        return dict(inputs=torch.from_numpy(image), number=index, data_samples=Sample(f'image_{index}.jpg', index % 2))


class Sample:
    """The part of a data sample that hooks look at."""

    def __init__(self, img_path: str, label: int) -> None:
        self.img_path = img_path
        self.label = label


@MODELS.register_module()
class ToyModel(BaseModel):
    """S6LA-ResNet-18 of eighth width with dropout and a linear head."""

    def __init__(self, width: int = 8, norm_eval: bool = False, dropout: float = 0.3) -> None:
        super().__init__(data_preprocessor=dict(type='ImgDataPreprocessor'))
        self.backbone = S6LAResNet(
            18, base_channels=width, stem_channels=8, state_dim=4, norm_eval=norm_eval, frozen_stages=-1
        )
        self.head = nn.Linear(8 * width, 2)
        self.dropout = dropout

    def forward(self, inputs, data_samples=None, mode='tensor', **_):
        features = self.backbone(inputs)[-1].mean((2, 3))
        logits = self.head(nn.functional.dropout(features, self.dropout, self.training))
        labels = torch.tensor([sample.label for sample in data_samples])
        if mode == 'loss':
            return dict(loss=nn.functional.cross_entropy(logits, labels))
        return [dict(correct=int(row.argmax()) == int(label)) for row, label in zip(logits, labels)]


class ToyMetric(BaseMetric):
    """Accuracy."""

    def process(self, data_batch, data_samples) -> None:
        self.results += [sample['correct'] for sample in data_samples]

    def compute_metrics(self, results: list) -> dict:
        return dict(accuracy=float(np.mean(results)))


class Killed(Exception):  # noqa: N818 (it is no error)
    """Stands for a kill."""


def build(work_dir: Path, *, epochs: bool = True, seed: int | None = 0, batch: int = 4, workers: int = 0, **options):
    """A runner with this package's loop and hooks.

    Args:
        work_dir (Path): Folder of the run.
        epochs (bool): Count epochs (3 of 12 images), or 9 iterations.
        **options: ``hooks`` (custom hooks), ``checkpoint`` (options of the checkpoint hook), ``resume`` (file or None),
            ``model``, ``dataset``, ``sampler``, ``param_scheduler``, ``optim_wrapper``, ``val_interval``,
            ``train_cfg``, ``launcher``, ``model_wrapper_cfg``.
    """
    if epochs:
        train = dict(type='ResumableEpochBasedTrainLoop', max_epochs=3, val_interval=options.get('val_interval', 1))
    else:
        train = dict(type='ResumableIterBasedTrainLoop', max_iters=9, val_interval=options.get('val_interval', 3))
    val = dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(type=ToyDataset, length=6),
        collate_fn=dict(type='pseudo_collate'),
    )
    sampler = options.get('sampler', dict(type='DefaultSampler', shuffle=True))
    checkpoint = dict(type='SafeCheckpointHook', by_epoch=False, interval=2) | options.get('checkpoint', {})
    resume = options.get('resume')
    return Runner(
        model=options.get('model') or ToyModel(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            val,
            sampler=sampler,
            batch_size=batch,
            num_workers=workers,
            dataset=dict(type=ToyDataset) | options.get('dataset', {}),
            batch_sampler=options.get('batch_sampler'),
        ),
        val_dataloader=val,
        train_cfg=train | options.get('train_cfg', {}),
        val_cfg=dict(),
        val_evaluator=dict(type=ToyMetric),
        optim_wrapper=options.get('optim_wrapper')
        or dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.05)),
        param_scheduler=options.get('param_scheduler')
        or dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=6),
        default_hooks=dict(
            checkpoint=checkpoint, logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=epochs)
        ),
        custom_hooks=options.get('hooks', []),
        randomness=dict(seed=seed),
        launcher=options.get('launcher', 'none'),
        cfg=dict(model_wrapper_cfg=options['model_wrapper_cfg']) if options.get('model_wrapper_cfg') else None,
        load_from=str(resume) if resume else None,
        resume=bool(resume),
        experiment_name=f'{work_dir}-{np.random.default_rng().integers(2**62)}',  # message hubs are global, by name
        default_scope='mmengine',
        log_level='WARNING',
    )
