_base_ = ['mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py', '../_base_/s6la_lvis_v1.py']
model = dict(backbone=dict(type='S6LAResNet'))
train_cfg = dict(type='ResumableEpochBasedTrainLoop')
default_hooks = {{_base_.s6la_hooks}}
optim_wrapper = dict(constructor='S6LAOptimWrapperConstructor')
train_dataloader = {{_base_.train_loader_at_root}}
val_dataloader = test_dataloader = {{_base_.loader_at_root}}
val_evaluator = test_evaluator = {{_base_.evaluator_at_root}}
