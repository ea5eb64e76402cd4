_base_ = './faster-rcnn_s6la-r50_fpn_1x_coco.py'
# Efficient channel attention in every block, as in the S6LA authors' detection config r50s6eca.
model = dict(backbone=dict(plugins=[dict(cfg=dict(type='ECALayer'), position='after_conv3')]))
