# A RetinaNet that trains from scratch on a CPU: S6LA-ResNet-18 of half the width, 64-channel neck and head. It has no
# RoIAlign, so it runs under bfloat16 autocast on the CPU too.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

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
    bbox_head=dict(num_classes=6, in_channels=64, feat_channels=64, stacked_convs=2),
)
