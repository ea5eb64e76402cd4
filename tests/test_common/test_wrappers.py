"""Data sets under wrappers."""

from __future__ import annotations

import pytest
from mmengine.config import ConfigDict
from mmengine.registry import DATASETS, DefaultScope
from toy_runner import ToyDataset

from s6la_mm.common.configs import datasets_of
from s6la_mm.engine.data import SeededDataset

LEAF = dict(type=ToyDataset, length=4)


def repeat(inside: dict) -> dict:
    return dict(type='RepeatDataset', times=2, dataset=inside)


def concat(*inside: dict) -> dict:
    # mmdet's adds its sizes to the metainfo, in which it wants no differences.
    return dict(type='ConcatDataset', datasets=list(inside), ignore_keys=['cumulative_sizes'])


def mix(inside: dict) -> dict:
    return dict(type='MultiImageMixDataset', dataset=inside, pipeline=[])


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
@pytest.mark.parametrize(
    ('wrapped', 'count'),
    [
        (LEAF, 1),
        (repeat(repeat(LEAF)), 1),
        (concat(repeat(LEAF), concat(LEAF, repeat(LEAF))), 3),
        (mix(concat(LEAF, LEAF)), 2),
        (concat(mix(repeat(LEAF)), LEAF), 2),
    ],
)
def test_the_same_is_found_in_configs_and_in_what_is_built(scope, wrapped, count):
    found = list(datasets_of(ConfigDict(wrapped)))
    assert found == [LEAF] * count
    with DefaultScope.overwrite_default_scope(scope):
        built = DATASETS.build(wrapped)
    parts = list(datasets_of(SeededDataset(built)))
    assert len(parts) == count and all(type(part) is ToyDataset for part in parts)


def test_the_config_that_is_found_is_that_of_the_whole():
    """What is set in it reaches the data set that is built."""
    cfg = ConfigDict(concat(repeat(LEAF), LEAF))
    for dataset in datasets_of(cfg):
        dataset.length = 7
    assert cfg.datasets[0].dataset.length == cfg.datasets[1].length == 7
