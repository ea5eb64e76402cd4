"""Configs of this package by name: as bases, from mmengine's hub and from a folder that `mim` knows."""

from __future__ import annotations

import runpy

import pytest
import yaml
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, TRANSFORMS, DefaultScope, init_default_scope
from tool_runner import ROOT

import s6la_mm  # noqa: F401  (importing it is what makes the names known)
from s6la_mm.common.cli import load_config
from s6la_mm.common.errors import UsageError

DETECTOR = 'mask_rcnn/mask-rcnn_s6la-r50_fpn_1x_coco.py'
SEGMENTOR_OF_CAMVID = 'upernet/upernet_s6la-r18_camvid.py'
SEGMENTOR = 'fcn/fcn_s6la-r50-d8_4xb4-80k_ade20k-512x512.py'


def test_tools_take_names():
    cfg = load_config(f's6la_mm::{DETECTOR}', {'train_cfg.max_epochs': 3})
    assert cfg.train_cfg.max_epochs == 3 and cfg.model.backbone.type.endswith('S6LAResNet')
    assert cfg.work_dir == './work_dirs/mask-rcnn_s6la-r50_fpn_1x_coco'
    assert load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py').model.type == 'RetinaNet'
    with pytest.raises(FileNotFoundError, match=r'fcn/nothing\.py is not among those of s6la_mm'):
        load_config('s6la_mm::fcn/nothing.py')
    for name in ('mmpose::a/b.py', 'os::path/b.py'):  # not installed, and never installed from here
        with pytest.raises(UsageError, match=r'no package .* with configs'):
            load_config(name)


@pytest.mark.parametrize('name', [DETECTOR, SEGMENTOR, 'quickstart/retinanet_s6la-r18_shapes.py'])
def test_config_by_name_is_the_file(name):
    by_name = get_config(f's6la_mm::{name}')
    assert by_name.to_dict() == Config.fromfile(ROOT / 'configs' / name).to_dict()


def test_parts_of_a_base_by_name_are_found_in_its_own_scope(tmp_path):
    """mmdet and mmseg both have a LoadAnnotations and a ResNet: those of the base's ``default_scope`` are meant."""
    (tmp_path / 'mine.py').write_text(f"_base_ = 's6la_mm::{SEGMENTOR_OF_CAMVID}'\n")
    cfg = Config.fromfile(tmp_path / 'mine.py')
    load = next(step for step in cfg.train_pipeline if step.type == 'LoadAnnotations')
    assert load._scope_ == 's6la_mm' and cfg.default_scope == 'mmseg'
    for package in ('mmseg', 'mmdet'):
        init_default_scope(package)
        assert type(TRANSFORMS.build(load)).__module__.startswith(f'{package}.')
        assert MODELS.get('s6la_mm.ResNet').__module__.startswith(f'{package}.')


def test_scope_without_another_one_is_mmengine():
    with DefaultScope.overwrite_default_scope('s6la_mm'):
        assert MODELS.get('BaseDataPreprocessor').__module__.startswith('mmengine.')
        assert MODELS.build(dict(type='s6la_mm.S6LAResNet', depth=18)).depth == 18


def test_unknown_name_says_so():
    with pytest.raises(FileNotFoundError, match='mask_rcnn/nothing'):
        get_config('s6la_mm::mask_rcnn/nothing.py')


def test_model_index_is_what_the_configs_say():
    index = runpy.run_path(str(ROOT / '.dev_scripts/make_model_index.py'))['index']()
    for path, content in index.items():
        assert yaml.safe_load((ROOT / path).read_text()) == content, 'run .dev_scripts/make_model_index.py'
    listed = {model['Config'] for content in index.values() for model in content.get('Models', [])}
    there = {str(path.relative_to(ROOT)) for path in ROOT.glob('configs/*/*.py')}
    assert listed == {path for path in there if path.split('/')[1] not in ('_base_', 'comparisons')}


def test_links_lead_to_the_repository():
    for name in ('configs', 'tools', 'model-index.yml'):
        assert (ROOT / 's6la_mm' / '.mim' / name).resolve() == ROOT / name
