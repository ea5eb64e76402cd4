"""What is asked of configs: the plain network beside an S6LA one, and no downloads."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from tool_runner import ROOT
from torch import nn

from s6la_mm.common.configs import plain_config, random_batch, without_downloads
from s6la_mm.common.errors import UsageError

QUICKSTART = ROOT / 'configs/quickstart/retinanet_s6la-r18_shapes.py'


def test_plain_network():
    cfg = Config.fromfile(QUICKSTART)
    plain, left_out = plain_config(cfg)
    assert cfg.model.backbone.type == 'S6LAResNet' and not left_out
    assert plain.model.backbone.type == 'mmdet.ResNet' and plain.model.backbone.base_channels == 32
    with pytest.raises(UsageError, match=r"'mmdet\.ResNet' is no S6LA backbone"):
        plain_config(plain)


@pytest.mark.parametrize(
    'config, expected, dropped',
    [
        ('mask_rcnn/mask-rcnn_s6la-vit-b_simple-fpn_lsj-100e_coco', 'mmpretrain.VisionTransformer', True),
        ('mask_rcnn/mask-rcnn_s6la-swin-t_fpn_1x_coco', 'mmpretrain.SwinTransformer', False),
        ('retinanet/retinanet_s6la-pvtv2-b0_fpn_1x_coco', 'mmdet.PyramidVisionTransformerV2', False),
        ('upernet/upernet_s6la-r50_4xb4-80k_ade20k-512x512', 'mmseg.ResNet', False),
    ],
)
def test_plain_networks_of_all_families_can_be_built(config, expected, dropped):
    pytest.importorskip('mmpretrain')
    pytest.importorskip('mmseg')
    cfg = Config.fromfile(ROOT / f'configs/{config}.py')
    plain, left_out = plain_config(cfg)
    assert plain.model.backbone.type == expected and bool(left_out) == dropped
    without_downloads(plain.model)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        names = {type(module).__name__ for module in MODELS.build(plain.model.backbone).modules()}
    assert expected.rpartition('.')[2] in names and not any('State' in name or 'S6LA' in name for name in names)


def test_downloads_are_removed():
    model = dict(
        pretrained='https://nowhere',
        backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='x.pth')),
        heads=[dict(init_cfg=dict(type='Normal'))],
    )
    without_downloads(model)
    assert model == dict(backbone=dict(init_cfg=None), heads=[dict(init_cfg=dict(type='Normal'))])


def test_random_images_of_other_tasks():
    with pytest.raises(UsageError, match="not for default_scope='mmpose'"):
        random_batch('mmpose', nn.Identity(), 1, (32, 32))
    with pytest.raises(UsageError, match='a bbox_head or panoptic_head, which Identity has not'):
        random_batch('mmdet', nn.Identity(), 1, (32, 32))


def test_random_images_with_stuff():
    """What Mask2Former's head for panoptic segmentation takes: a mask for each thing, a map of the stuff."""
    model = nn.Module()
    model.panoptic_head = SimpleNamespace(num_things_classes=2, num_stuff_classes=3, num_classes=5)
    (sample,) = random_batch('mmdet', model, 1, (16, 24), objects=9)['data_samples']
    assert sample.gt_instances.masks.masks.shape == (9, 16, 24) and sample.gt_instances.labels.max() < 2
    assert set(sample.gt_sem_seg.sem_seg.unique().tolist()) == {2, 3, 4}


def test_random_images_with_classes():
    """What the data preprocessor of a classifier takes: images of any size, and the label of each."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(
            dict(
                type='ImageClassifier',
                backbone=dict(type='ResNet', depth=18),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=3, in_channels=512),
            )
        )
    batch = random_batch('mmpretrain', model, 20, (32, 48))
    assert batch['inputs'].shape == (20, 3, 32, 48)
    assert {int(sample.gt_label) for sample in batch['data_samples']} == {0, 1, 2}
    prepared = model.data_preprocessor(batch, training=True)
    assert model(**prepared, mode='loss')['loss'].isfinite()
