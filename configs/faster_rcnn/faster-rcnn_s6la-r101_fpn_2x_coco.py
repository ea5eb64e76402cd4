_base_ = './faster-rcnn_s6la-r50_fpn_2x_coco.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
