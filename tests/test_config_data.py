"""The data sets that configs name find their files where the documents and the converters of OpenMMLab have them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from config_steps import ROOT
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

XML = """<annotation><size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>{}</name><difficult>0</difficult>
<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>45</xmax><ymax>45</ymax></bndbox></object></annotation>"""
INSTANCES = dict(segmentation=[[4, 4, 44, 4, 44, 44, 4, 44]], bbox=[4, 4, 40, 40], area=1600, iscrowd=0)
CITY = 'aachen/aachen_000000_000019'


def write(path, content):
    """A text, or a picture of 64 x 48 in which all is one label or colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    else:
        size = (48, 64, 3) if path.suffix == '.jpg' or 'leftImg8bit' in path.name else (48, 64)
        Image.fromarray(np.full(size, content, np.uint8)).save(path)


def instances(name, categories, **image):
    """An annotation file of COCO's form with one object, of the last category."""
    return json.dumps(
        dict(
            images=[dict(id=1, width=64, height=48, **image)],
            categories=[dict(id=i, name=name) for i, name in enumerate(categories, 24)],
            annotations=[dict(id=1, image_id=1, category_id=23 + len(categories), **INSTANCES)],
        )
    )


def voc(root):
    for year, kind in (('VOC2007', 'cat'), ('VOC2012', 'tvmonitor')):
        write(root / year / 'ImageSets/Main/trainval.txt', 'one\n')
        write(root / year / 'JPEGImages/one.jpg', 90)
        write(root / year / 'Annotations/one.xml', XML.format(kind))


def voc12(root):
    for split, folder in (('train', 'SegmentationClass'), ('aug', 'SegmentationClassAug')):
        write(root / f'VOC2012/ImageSets/Segmentation/{split}.txt', f'{split}\n')
        write(root / f'VOC2012/JPEGImages/{split}.jpg', 90)
        write(root / f'VOC2012/{folder}/{split}.png', 20)


def cityscapes(root):
    write(root / f'leftImg8bit/train/{CITY}_leftImg8bit.png', 90)
    write(root / f'gtFine/train/{CITY}_gtFine_labelTrainIds.png', 18)
    names = ('person', 'rider', 'car', 'truck', 'bus', 'train', 'motorcycle', 'bicycle')
    content = instances('train', names, file_name=f'{CITY}_leftImg8bit.png', segm_file=f'{CITY}_gtFine_instanceIds.png')
    write(root / 'annotations/instancesonly_filtered_gtFine_train.json', content)


@pytest.mark.parametrize(
    ('name', 'variable', 'make', 'length', 'labels'),
    [
        ('retinanet/retinanet_s6la-r50_fpn_1x_voc0712.py', 'VOC_ROOT', voc, 6, [7, 19]),
        ('upernet/upernet_s6la-r50_4xb4-40k_voc12aug-512x512.py', 'VOC_ROOT', voc12, 2, [20, 20]),
        ('mask_rcnn/mask-rcnn_s6la-r50_fpn_1x_cityscapes.py', 'CITYSCAPES_ROOT', cityscapes, 8, [7]),
        ('upernet/upernet_s6la-r50_4xb2-80k_cityscapes-512x1024.py', 'CITYSCAPES_ROOT', cityscapes, 1, [18]),
    ],
)
def test_training_set(tmp_path, monkeypatch, name, variable, make, length, labels):
    make(tmp_path)
    monkeypatch.setenv(variable, str(tmp_path))
    cfg = Config.fromfile(ROOT / name)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(dataset) == length
    for index, label in enumerate(labels):
        sample = dataset[index]['data_samples']
        if cfg.default_scope == 'mmdet':
            assert sample.gt_instances.labels.tolist() == [label]
        else:
            assert set(sample.gt_sem_seg.data.unique().tolist()) - {255} == {label}
