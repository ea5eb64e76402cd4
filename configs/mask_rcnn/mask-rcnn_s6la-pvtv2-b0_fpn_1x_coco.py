# MMDetection has no Mask R-CNN with PVTv2: this is the recipe of PVTv2's authors.
_base_ = './mask-rcnn_s6la-r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='S6LAPVTv2',
        arch='b0',
        init_cfg=dict(checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b0.pth'),
    ),
    neck=dict(in_channels=[32, 64, 160, 256]),
)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=1e-4))
