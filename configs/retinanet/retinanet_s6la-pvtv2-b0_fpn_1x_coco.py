_base_ = ['mmdet::pvt/retinanet_pvtv2-b0_fpn_1x_coco.py', '../_base_/s6la_coco.py']
model = dict(backbone=dict(type='S6LAPVTv2'))
optim_wrapper = dict(paramwise_cfg={{_base_.no_state_decay}})
train_dataloader = {{_base_.loader_at_root}}
val_dataloader = {{_base_.loader_at_root}}
test_dataloader = {{_base_.loader_at_root}}
val_evaluator = {{_base_.evaluator_at_root}}
test_evaluator = {{_base_.evaluator_at_root}}
