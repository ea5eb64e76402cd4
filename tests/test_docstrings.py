"""The examples of the public docstrings run and print what they say."""

import doctest
import importlib

import pytest

MODULES = [
    'backbones.mrla_resnet',
    'backbones.rla_resnet',
    'backbones.s6la_pvt',
    'backbones.s6la_resnet',
    'backbones.s6la_swin',
    'backbones.s6la_vit',
    'checkpoint.safe_globals',
    'collect_env',
    'layers.eca',
    'layers.map_cell',
    'layers.token_cell',
    'layers.window_attention',
    'necks.simple_fpn',
    'ops.selective_scan',
    'testing',
    'analysis.logs',
]


@pytest.mark.parametrize('name', MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f's6la_mm.{name}')
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 0
    assert results.failed == 0
