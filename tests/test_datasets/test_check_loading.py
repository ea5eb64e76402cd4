"""What the loader stops at or drops is found in data sets of every type, and what it reads is no error."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image
from small_data import LOAD, LOAD_MASKS, LOAD_SEG, NAMES, SIZE, coco, draw, halves, scenes, voc
from tool_runner import load
from torch.utils.data import Dataset

TOOL = load('misc/check_dataset.py')


def check(scope: str = 'mmdet', decode: bool = False, evaluator: Any = None, **datasets: dict) -> Any:
    cfg = Config(dict(default_scope=scope))
    for split, dataset in datasets.items():
        cfg[f'{split}_dataloader'] = dict(dataset=dataset)
        if evaluator is not None:
            cfg[f'{split}_evaluator'] = evaluator
    return TOOL.check_config_data(cfg, decode=decode, workers=2)


def errors(report: Any) -> set[str]:
    return {finding.kind for finding in report.findings if finding.level == 'error'}


def notes(report: Any) -> set[str]:
    return {finding.kind for finding in report.findings if finding.level == 'note'}


def without(key: str):
    def edit(content: dict) -> None:
        for annotation in content['annotations'][:2]:
            del annotation[key]

    return edit


def setting(**values: Any):
    return lambda content: content['annotations'][0].update(values)


COCO_METRIC = dict(type='CocoMetric', ann_file='val.json', metric=['bbox'])


@pytest.mark.parametrize(
    ('kind', 'edit', 'split', 'options', 'evaluator'),
    [
        (None, setting(), 'train', {}, None),
        ('missing-key', without('area'), 'train', {}, None),
        ('missing-key', setting(area=None), 'val', {}, None),
        ('missing-key', without('bbox'), 'train', {}, None),
        ('missing-key', without('id'), 'train', {}, None),
        ('zero-area', setting(area=0), 'train', {}, None),
        ('ignored-object', setting(ignore=True), 'train', {}, None),
        (None, setting(ignore=True), 'val', {}, None),
        (None, without('iscrowd'), 'train', {}, None),
        ('missing-key', without('iscrowd'), 'val', {}, None),
        ('missing-key', without('iscrowd'), 'val', {}, [COCO_METRIC]),
        (None, without('iscrowd'), 'val', {}, dict(type='CocoMetric')),
        (None, without('iscrowd'), 'val', {}, dict(COCO_METRIC, format_only=True)),
        (None, without('iscrowd'), 'val', {}, dict(type='LVISMetric', ann_file='val.json')),
        ('missing-mask', without('segmentation'), 'val', {}, dict(COCO_METRIC, metric=['bbox', 'segm'])),
        ('missing-mask', setting(segmentation=None), 'train', dict(pipeline=LOAD_MASKS), None),
        ('missing-mask', setting(segmentation=[]), 'train', dict(pipeline=LOAD_MASKS), None),
        (None, without('segmentation'), 'train', {}, None),
        (None, setting(segmentation=[[1, 2]]), 'train', {}, None),
        (None, setting(segmentation=dict(size=SIZE[::-1], counts=[1280])), 'train', dict(pipeline=LOAD_MASKS), None),
        ('no-objects', lambda content: content['annotations'].clear(), 'train', {}, None),
        ('no-objects', lambda content: content.pop('annotations'), 'val', {}, None),
        (None, lambda content: content.pop('annotations'), 'test', {}, None),
        ('no-samples', setting(), 'train', dict(filter_cfg=dict(min_size=50)), None),
        ('class-order', setting(), 'train', dict(metainfo=dict(classes=NAMES[::-1])), None),
        (None, setting(), 'train', dict(metainfo=dict(classes=NAMES[1:])), None),
        ('classes-no-list', setting(), 'train', dict(metainfo=dict(classes='cat')), None),
        ('cannot-build', setting(), 'train', dict(classes=NAMES), None),
        ('cannot-build', setting(), 'train', dict(pipeline=[dict(type='NoSuchTransform')]), None),
        ('missing-file', setting(), 'val', {}, dict(type='CocoMetric', ann_file='other.json')),
        ('evaluator-file', setting(), 'val', {}, dict(type='CocoMetric', ann_file='train.json')),
        (
            'evaluator-file',
            setting(),
            'val',
            {},
            dict(type='Evaluator', metrics=[dict(COCO_METRIC, ann_file='train.json')]),
        ),
        ('cannot-load', lambda content: content['images'][1].update(width=None), 'train', {}, None),
        ('degenerate-box', setting(bbox=[1, 2, 3]), 'train', {}, None),
        ('cannot-load', lambda content: content['images'][1].pop('width'), 'train', {}, None),
        ('missing-image', lambda content: content['images'][1].update(file_name='1.JPG'), 'train', {}, None),
    ],
)
def test_coco_file(tmp_path, kind, edit, split, options, evaluator):
    coco(tmp_path, edit=lambda content: [image.update(id=7 + image['id']) for image in content['images']])
    evaluator = json.loads(re.sub(r'(\w+\.json)', rf'{tmp_path}/\1', json.dumps(evaluator)))
    report = check(evaluator=evaluator, **{split: coco(tmp_path, split, edit, **options)})
    assert errors(report) == ({kind} if kind else set())


def test_findings_name_the_thing(tmp_path):
    data = coco(tmp_path, edit=lambda content: content['images'][1].update(file_name='1.JPG'))
    (finding,) = check(train=data).findings
    assert finding.where.endswith('train/1.JPG') and finding.detail == 'there is 1.jpg'
    data = coco(tmp_path, edit=without('area'))
    where = [finding.where for finding in check(train=data).findings]
    assert where == ['annotation 0 of 0.jpg', 'annotation 1 of 0.jpg', str(tmp_path / 'train/0.jpg')]
    data = coco(tmp_path, metainfo=dict(classes=('Cat', 'dog')))
    kinds = {f.kind: f for f in check(train=data).findings}
    assert kinds['misspelt-class'].detail == "the class is 'Cat'" and 'missing-class' in kinds


def test_class_table_counts_what_is_trained(tmp_path):
    part = coco(tmp_path, edit=setting(iscrowd=1))
    val = coco(tmp_path / 'held_out', 'val', lambda content: content['annotations'].pop(0))
    wrapped = dict(type='ConcatDataset', datasets=[dict(type='ClassBalancedDataset', oversample_thr=1, dataset=part)])
    report = check(train=dict(type='MultiImageMixDataset', dataset=wrapped, pipeline=[]), val=val)
    assert TOOL.class_table(report.classes) == [
        'class  train objects  images  val objects  images',
        'cat                1       1            1       1',
        'dog                2       2            2       2',
    ]
    assert not report.has_errors


def test_files_of_class_names(tmp_path):
    (tmp_path / 'names.txt').write_text('cat\ndog\n')
    assert not check(train=coco(tmp_path, metainfo=dict(classes=str(tmp_path / 'names.txt')))).findings


def test_lvis_and_panoptic_without_their_packages(tmp_path):
    def addresses(content: dict) -> None:
        for image in content['images']:
            image['coco_url'] = f'http://images.cocodataset.org/train/{image.pop("file_name")}'
        for annotation in content['annotations']:
            del annotation['iscrowd']

    data = coco(tmp_path, edit=addresses, type='LVISV1Dataset', data_prefix=dict(img=''))
    assert not errors(check(train=data, val=data)) - {'leakage'}
    (tmp_path / 'train/1.jpg').unlink()
    assert errors(check(train=data)) == {'missing-image'}

    def segments(content: dict) -> None:
        parts = [dict(id=7 + 256 * i, area=640, bbox=[20 * i, 0, 20, 32], iscrowd=0, category_id=1 + i) for i in (0, 1)]
        content['annotations'] = [dict(image_id=i, file_name=f'{i}.png', segments_info=parts) for i in (0, 1)]
        content['categories'] = [dict(entry, isthing=2 - entry['id']) for entry in content['categories']]

    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadPanopticAnnotations')]
    names = dict(classes=NAMES, thing_classes=NAMES[:1], stuff_classes=NAMES[1:])
    prefix = dict(img='train', seg='segments')
    data = coco(
        tmp_path, edit=segments, pipeline=pipeline, type='CocoPanopticDataset', data_prefix=prefix, metainfo=names
    )
    (tmp_path / 'segments').mkdir()
    ids = np.zeros((32, 40, 3), np.uint8)
    ids[:, :, 0], ids[:, 20:, 1] = 7, 1
    for i in range(2):
        Image.fromarray(ids).save(tmp_path / f'segments/{i}.png')
    report = check(train=data)
    assert not errors(report) and report.classes[0].amounts == dict(cat=2 * 640, dog=2 * 640)
    (tmp_path / 'segments/1.png').unlink()
    assert errors(check(train=data)) == {'missing-label-map'}


@pytest.mark.parametrize(
    ('kind', 'objects'),
    [
        (None, [('cat', [1, 1, 40, 32]), ('dog', [3, 3, 9, 9])]),
        ('misspelt-class', [('cat', [1, 1, 40, 32]), ('Dog', [3, 3, 9, 9])]),
        ('box-outside-image', [('cat', [1, 1, 60, 32])]),
        ('degenerate-box', [('cat', [9, 1, 5, 32])]),
        ('cannot-load', [('cat', [1, 1, 40])]),
        ('no-objects', [('horse', [1, 1, 40, 32])]),
    ],
)
def test_voc(tmp_path, kind, objects):
    report = check(train=voc(tmp_path, objects, size=kind != 'no-objects'))
    assert kind in errors(report) if kind == 'cannot-load' else errors(report) == ({kind} if kind else set())
    assert all('000' not in f.where for f in report.findings)
    (tmp_path / 'VOC2007/Annotations/a.xml').unlink()
    (finding, *_) = check(train=voc(tmp_path, objects) | dict(ann_file='other.txt')).findings
    assert finding.kind == 'missing-file' and finding.where.endswith('other.txt')


def test_crowdhuman_boxes_may_leave_the_image(tmp_path):
    draw(tmp_path / 'Images/a.jpg')
    boxes = dict(hbox=[1, 1, 5, 5], fbox=[-9, 1, 30, 60], vbox=[0, 1, 21, 31], extra=dict(box_id=0))
    mask = dict(boxes, tag='mask', extra=dict(ignore=1))
    (tmp_path / 'train.odgt').write_text(json.dumps(dict(ID='a', gtboxes=[dict(boxes, tag='person'), mask])))
    where = dict(data_root=str(tmp_path), ann_file='train.odgt', data_prefix=dict(img='Images'))
    report = check(train=dict(type='CrowdHumanDataset', **where, pipeline=LOAD))
    assert not report.findings and report.classes[0].amounts == dict(person=1)


def test_openmmlab_format_and_unknown_types(tmp_path):
    draw(tmp_path / 'a.png')
    instances = [dict(bbox=[1, 1, 9, 9], bbox_label=0, ignore_flag=0), dict(bbox=[1, 1, 9, 9], bbox_label=2)]
    entry = dict(img_path='a.png', height=32, width=40, instances=instances)
    (tmp_path / 'a.json').write_text(json.dumps(dict(metainfo=dict(classes=NAMES), data_list=[entry])))
    data = dict(type='BaseDetDataset', data_root=str(tmp_path), ann_file='a.json', data_prefix=dict(img_path=''))
    assert errors(check(train=dict(data, pipeline=LOAD))) == {'label-out-of-range'}

    @DATASETS.register_module(force=True)
    class OwnDataset(Dataset):
        def __init__(self, files: list) -> None:
            self.files = files

        def __len__(self) -> int:
            return len(self.files)

        def get_data_info(self, index: int) -> dict:
            return dict(img_path=self.files[index])

    objects = [dict(bbox=np.array([1, 1, 9, 9], np.float32), bbox_label=np.int64(0), mask=np.ones(6))]
    OwnDataset.METAINFO = OwnDataset.metainfo = dict(classes=NAMES)
    entry_of = OwnDataset.get_data_info
    OwnDataset.get_data_info = lambda self, index: dict(entry_of(self, index), instances=objects)
    report = check(train=dict(type='OwnDataset', files=[str(tmp_path / 'a.png')]))
    assert not errors(report) and report.classes[0].amounts == dict(cat=1)
    OwnDataset.get_data_info = entry_of
    report = check(train=dict(type='OwnDataset', files=[str(tmp_path / name) for name in ('a.png', 'b.png')]))
    assert errors(report) == {'missing-image'} and report.images == 2
    del OwnDataset.get_data_info
    assert {f.kind for f in check(train=dict(type='OwnDataset', files=['a'])).findings} == {'unchecked'}


def palette_image(labels: np.ndarray) -> Image.Image:
    image = Image.fromarray(labels, 'P')
    image.putpalette([7 * i % 256 for i in range(768)])
    return image


@pytest.mark.parametrize(
    ('kind', 'note', 'labels', 'options'),
    [
        (None, None, halves(0, 1), {}),
        (None, None, palette_image(halves(0, 1)), {}),
        (None, None, halves(1, 2), dict(reduce_zero_label=True)),
        (None, None, halves(1, 0), dict(pipeline=LOAD_SEG[:1])),
        (None, 'class-without-objects', halves(0, 255), {}),
        (None, 'class-without-objects', halves(0, 1), dict(reduce_zero_label=True)),
        ('no-objects', 'nothing-labelled', halves(255, 255), {}),
        ('label-out-of-range', 'class-without-objects', halves(0, 2), {}),
        ('label-out-of-range', None, Image.fromarray(np.zeros((32, 40, 4), np.uint8)), {}),
        ('wrong-suffix', None, halves(0, 1), dict(suffix='.JPG')),
        ('no-samples', 'other-suffix', halves(0, 1), dict(suffix='.jpeg')),
        ('missing-label-map', None, halves(0, 1), dict(seg_map_suffix='.PNG')),
    ],
)
def test_label_maps(tmp_path, kind, note, labels, options):
    report = check('mmseg', train=scenes(tmp_path, [labels, labels], **options))
    assert kind in errors(report) if kind else not report.has_errors
    assert note in notes(report) if note else True
    if kind is None and note is None:
        assert not report.findings


def test_ignored_pixels_are_said(tmp_path):
    report = check('mmseg', train=scenes(tmp_path, [halves(0, 255)]))
    assert 'dog' in TOOL.table(report, 3) and '640 pixels are 255, which is ignored' in TOOL.table(report, 3)


def test_segmentation_by_list_and_file_beside(tmp_path):
    data = scenes(tmp_path, [halves(0, 1), halves(0, 1)])
    (tmp_path / 'list.txt').write_text('0\n')
    data['ann_file'] = 'list.txt'
    report = check('mmseg', train=data)
    assert not report.findings and report.images == 1
    (tmp_path / 'list.txt').unlink()
    assert errors(check('mmseg', train=data)) == {'missing-file'}
    voc = {**data, 'type': 'PascalVOCDataset', 'metainfo': None}  # which asserts that the files are there
    assert [f.where for f in check('mmseg', train=voc).findings] == [str(tmp_path / 'list.txt')]


def test_classification(tmp_path):
    for name in ('cat/0.jpg', 'cat/1.PNG', 'dog/2.jpg'):
        draw(tmp_path / name)
    data = dict(type='CustomDataset', data_root=str(tmp_path), pipeline=[dict(type='LoadImageFromFile')])
    report = check('mmpretrain', train=data)
    assert not report.findings
    assert TOOL.class_table(report.classes) == ['class  train images', 'cat               2', 'dog               1']
    draw(tmp_path / 'dog/3.webp')
    (finding,) = check('mmpretrain', train=data).findings
    assert finding.kind == 'other-suffix' and finding.detail.startswith('1 files that end in .webp')
    (tmp_path / 'list.txt').write_text('cat/0.jpg 0\ndog/2.jpg 5\n')
    listed = dict(data, ann_file='list.txt', classes=['cat', 'dog'])
    assert errors(check('mmpretrain', train=listed)) == {'label-out-of-range'}
    assert errors(check('mmpretrain', train=dict(data, classes='names.txt'))) == {'missing-file'}
    assert errors(check('mmpretrain', train=dict(data, classes=['cat']))) == {'cannot-load'}
    assert errors(check('mmpretrain', train=dict(data, data_root=str(tmp_path / 'cat')))) == {'cannot-load'}


def test_images_that_only_one_library_reads(tmp_path, monkeypatch):
    """Floats in a TIFF, which OpenCV does not load in colour; a size that Pillow refuses; a file of neither."""
    draw(tmp_path / 'train/0.jpg')
    Image.fromarray(np.zeros(SIZE[::-1], np.float32)).save(tmp_path / 'train/1.tif')

    def edit(content: dict) -> None:
        content['images'][1]['file_name'] = '1.tif'

    data = coco(tmp_path, edit=edit)
    assert errors(check(train=data)) == {'unreadable-image'} == errors(check(train=data, decode=True))
    with_pillow = [dict(type='LoadImageFromFile', imdecode_backend='pillow'), LOAD[1]]
    assert not errors(check(train=dict(data, pipeline=with_pillow)))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 500)
    data = coco(tmp_path)
    assert not errors(check(train=data))
    assert errors(check(train=dict(data, pipeline=with_pillow))) == {'unreadable-image'}
