"""Every planted defect is found, and nothing else."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from broken_data import break_coco, break_segmentation, link_coco, make_segmentation
from mmcv import imread
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from PIL import Image
from tool_runner import call, load

from s6la_mm.common.errors import UsageError
from s6la_mm.datasets import generate_shapes
from s6la_mm.datasets.checks.coco import CocoFile, _decode_counts
from s6la_mm.datasets.checks.findings import KINDS, Finding
from s6la_mm.datasets.checks.image_files import ImageCheck, ImageLoader

TOOL = load('misc/check_dataset.py')
Report, check_config_data = TOOL.Report, TOOL.check_config_data

CONFIGS = Path(__file__).parents[2] / 'configs'
COCO = CONFIGS / 'mask_rcnn/mask-rcnn_s6la-r50_fpn_1x_coco.py'
CAMVID = CONFIGS / 'upernet/upernet_s6la-r18_camvid.py'
TINY = Path(__file__).parents[3] / 'shared/data/tiny_coco'
SPLITS = dict(train=('train2017', 'instances_train2017.json'), val=('val2017', 'instances_val2017.json'))
SHAPES_SPLITS = dict(train=('train', 'train.json'), val=('val', 'val.json'))


def config(path: Path, monkeypatch, **roots: Path) -> Config:
    for name, root in roots.items():
        monkeypatch.setenv(name, str(root))
    return Config.fromfile(path)


def found(report) -> Counter:
    return Counter((f.kind, f.split, f.where) for f in report.findings)


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp('clean') / 'shapes', num_train=30, num_val=8, image_size=64)


def coco_config(root: Path, splits: dict = SHAPES_SPLITS) -> Config:
    """Plain CocoDataset on any data set in COCO layout, with the classes of its file."""
    names = json.loads((root / 'annotations' / splits['train'][1]).read_text())['categories']
    loaders = {
        f'{split}_dataloader': dict(
            dataset=dict(
                type='CocoDataset',
                data_root=str(root),
                ann_file=f'annotations/{name}',
                data_prefix=dict(img=f'{folder}/'),
                metainfo=dict(classes=tuple(c['name'] for c in names)),
                pipeline=[dict(type='LoadAnnotations', with_bbox=True, with_mask=True)],
            )
        )
        for split, (folder, name) in splits.items()
    }
    return Config(dict(default_scope='mmdet', **loaders, test_dataloader=loaders['val_dataloader']))


def test_clean_data_set_has_nothing(shapes):
    report = check_config_data(coco_config(shapes), decode=True)
    assert found(report) == Counter() and report.images == 38 and not report.has_errors


@pytest.mark.parametrize('seed', range(3))
def test_every_defect_of_a_generated_data_set(shapes, tmp_path, seed):
    link_coco(shapes, tmp_path / 'broken', SHAPES_SPLITS)
    expected = break_coco(tmp_path / 'broken', SHAPES_SPLITS, seed)
    report = check_config_data(coco_config(tmp_path / 'broken'), workers=1 + seed)
    assert found(report) == Counter(expected)
    assert report.has_errors


@pytest.mark.skipif(not TINY.is_dir(), reason='the sample of COCO is not there')
@pytest.mark.parametrize('seed', range(2))
def test_every_defect_of_a_copy_of_coco(tmp_path, monkeypatch, seed):
    clean = check_config_data(config(COCO, monkeypatch, COCO_ROOT=TINY))
    assert {f.kind for f in clean.findings} == {'empty-image', 'class-without-objects'} and not clean.has_errors
    link_coco(TINY, tmp_path / 'broken', SPLITS)
    expected = break_coco(tmp_path / 'broken', SPLITS, seed)
    report = check_config_data(config(COCO, monkeypatch, COCO_ROOT=tmp_path / 'broken'))
    there = {(kind, split, where.replace(str(TINY), str(tmp_path / 'broken'))) for kind, split, where in found(clean)}
    assert found(report) == Counter(expected | there)


def test_every_kind_is_tested(shapes, tmp_path):
    link_coco(shapes, tmp_path / 'coco', SHAPES_SPLITS)
    make_segmentation(tmp_path / 'camvid')
    planted = break_coco(tmp_path / 'coco', SHAPES_SPLITS, 0) | break_segmentation(tmp_path / 'camvid')
    elsewhere = {
        *('missing-file', 'broken-file', 'missing-class', 'unused-category', 'rle-without-poly2mask'),
        # in test_check_loading.py
        *('cannot-build', 'cannot-load', 'no-samples', 'no-objects', 'no-annotations', 'left-out', 'unchecked'),
        *('classes-no-list', 'class-order', 'misspelt-class', 'wrong-suffix', 'other-suffix', 'nothing-labelled'),
        *('missing-package', 'class-without-objects', 'evaluator-file'),
    }
    assert {kind for kind, _, _ in planted} | elsewhere == set(KINDS)


def test_damage_in_the_middle_needs_decoding(shapes, tmp_path):
    link_coco(shapes, tmp_path / 'broken', SHAPES_SPLITS)
    file = tmp_path / 'broken/train' / sorted(os.listdir(shapes / 'train'))[-1]
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 60] = bytes(60)
    file.write_bytes(content)
    cfg = coco_config(tmp_path / 'broken')
    assert not check_config_data(cfg).has_errors
    report = check_config_data(cfg, decode=True)
    assert [f.where for f in report.findings] == [str(file)]


def test_classes_of_the_config(shapes):
    cfg = coco_config(shapes)
    names = cfg.train_dataloader.dataset.metainfo.classes
    cfg.train_dataloader.dataset.metainfo = dict(classes=(*names[1:], 'unicorn'))
    assert set(found(check_config_data(cfg, ['train']))) == {
        ('missing-class', 'train', "class 'unicorn'"),
        ('unused-category', 'train', f'category {names[0]!r}'),
        ('class-without-objects', 'train', "class 'unicorn'"),
    }


def test_rle_masks_that_the_pipeline_would_drop(shapes):
    cfg = coco_config(shapes)
    cfg.train_dataloader.dataset.pipeline[0].poly2mask = False
    data = json.loads((shapes / 'annotations/train.json').read_text())
    rle = [a for a in data['annotations'] if isinstance(a['segmentation'], dict)]
    findings = check_config_data(cfg).findings
    assert rle and {f.kind for f in findings} == {'rle-without-poly2mask'} and len(findings) == len(rle)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('{"images": [', 'is no JSON'),
        ('[]', "no list 'images'"),
        ('{"images": [{"file_name": "a.jpg"}], "annotations": [], "categories": []}', 'has no id'),
    ],
)
def test_annotation_file_that_cannot_be_read(shapes, tmp_path, content, words):
    link_coco(shapes, tmp_path / 'broken', SHAPES_SPLITS)
    (tmp_path / 'broken/annotations/val.json').write_text(content)
    cfg = coco_config(tmp_path / 'broken')
    (finding,) = check_config_data(cfg).findings
    assert finding.kind == 'broken-file' and words in finding.detail
    with pytest.raises(ValueError, match=words):
        CocoFile(str(tmp_path / 'broken/annotations/val.json'))


def test_compressed_rle_is_decoded_as_pycocotools_does():
    import numpy as np
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(0)
    for density in (0.02, 0.5, 0.98):
        bitmap = np.asfortranarray(rng.random((40, 70)) < density).astype(np.uint8, order='F')
        runs = _decode_counts(coco_mask.encode(bitmap)['counts'].decode())
        flat = np.concatenate([np.full(n, i % 2) for i, n in enumerate(runs)])
        assert np.array_equal(flat, bitmap.ravel(order='F'))


def test_size_is_that_of_the_turned_image(tmp_path):
    image, exif = Image.new('RGB', (40, 20)), Image.Exif()
    exif[0x0112] = 6
    for name in ('turned.jpg', 'turned.webp', 'turned.png', 'turned.tif'):
        image.save(tmp_path / name, exif=exif)
        path = str(tmp_path / name)
        for color_type in ('color', 'unchanged'):
            for backend in ('cv2', 'pillow'):
                loader = LoadImageFromFile(color_type=color_type, imdecode_backend=backend)
                check = ImageCheck(ImageLoader([loader]))
                height, width = imread(path, color_type, backend=backend).shape[:2]
                sizes = [check(dict(img_path=path), path).size for _ in range(2)]  # loaded, then known
                assert sizes == [(width, height)] * 2


def test_every_defect_of_a_segmentation_data_set(tmp_path, monkeypatch):
    make_segmentation(tmp_path)
    cfg = config(CAMVID, monkeypatch, CAMVID_ROOT=tmp_path)
    assert found(check_config_data(cfg)) == Counter()
    expected = break_segmentation(tmp_path)
    assert found(check_config_data(cfg, workers=3)) == Counter(expected)


def test_wrappers_are_walked_through(shapes):
    cfg = coco_config(shapes)
    plain = cfg.train_dataloader.dataset
    other = dict(plain, ann_file='annotations/val.json', data_prefix=dict(img='val/'))
    wrapped = dict(type='ConcatDataset', datasets=[plain, dict(type='RepeatDataset', times=2, dataset=other)])
    cfg.train_dataloader.dataset = dict(type='MultiImageMixDataset', dataset=wrapped, pipeline=[])
    report = check_config_data(cfg, ['train', 'val'])
    assert report.images == 30 + 8 + 8
    assert {f.kind for f in report.findings} == {'leakage'} and len(report.findings) == 8


def test_config_without_data():
    with pytest.raises(UsageError, match='has no data set for train, val, test'):
        check_config_data(Config(dict(default_scope='mmdet')))
    loader = dict(dataset=dict(type='NoSuchDataset'))
    with pytest.raises(UsageError, match='NoSuchDataset is no registered data set'):
        check_config_data(Config(dict(default_scope='mmdet', train_dataloader=loader)))


def test_table():
    report = Report([Finding('missing-image', 'train', name) for name in ('a.jpg', 'b.jpg')], images=10, seconds=0.5)
    assert TOOL.table(report, examples=1).splitlines() == [
        'error  missing-image   2  the file is not there: get it, or remove its entry',
        '                          train: a.jpg',
        '                          ... and 1 more',
        '10 images in 0.5 s (20 images/s): 2 errors',
    ]


def test_tool(shapes, tmp_path):
    """Exit status, table, JSON, and a data set that is not there."""
    link_coco(shapes, tmp_path / 'broken', SHAPES_SPLITS)
    expected = break_coco(tmp_path / 'broken', SHAPES_SPLITS, 0)
    coco_config(tmp_path / 'broken').dump(tmp_path / 'config.py')
    result = call(
        'misc/check_dataset.py', tmp_path / 'config.py', '--json', tmp_path / 'report.json', '--examples', '1'
    )
    assert result.returncode == 1, result.stderr
    assert 'truncated-image' in result.stdout and '... and 1 more' in result.stdout
    content = json.loads((tmp_path / 'report.json').read_text())
    assert {(f['kind'], f['split'], f['where']) for f in content['findings']} == expected
    result = call('misc/check_dataset.py', COCO, COCO_ROOT=str(tmp_path / 'nowhere'))
    assert result.returncode == 1 and 'missing-file' in result.stdout and 'COCO_ROOT' in result.stdout
