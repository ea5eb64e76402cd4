_base_ = './mask-rcnn_s6la-vit-b_simple-fpn_lsj-100e_coco.py'
checkpoint = 'https://download.openmmlab.com/mmclassification/v0/deit/deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth'
model = dict(
    backbone=dict(arch='deit-small', init_cfg=dict(checkpoint=checkpoint)),
    neck=dict(in_channels=384),
)
