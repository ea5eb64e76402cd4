# A Mask R-CNN that trains from scratch on a CPU: S6LA-ResNet-18 of half the width, 64-channel neck and heads with batch
# norm, anchors and RoI levels for images of 160 × 160.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(
        type='S6LAResNet',
        depth=18,
        base_channels=32,
        frozen_stages=-1,
        norm_eval=False,
        zero_init_residual=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64, norm_cfg=dict(type='BN')),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=14),
        bbox_head=dict(
            type='ConvFCBBoxHead',
            num_shared_fcs=1,
            num_shared_convs=2,
            in_channels=64,
            conv_out_channels=64,
            fc_out_channels=256,
            num_classes=6,
            reg_class_agnostic=True,
            norm_cfg=dict(type='BN'),
        ),
        mask_roi_extractor=dict(out_channels=64, finest_scale=28),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=6, norm_cfg=dict(type='BN')),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=50)),
)
