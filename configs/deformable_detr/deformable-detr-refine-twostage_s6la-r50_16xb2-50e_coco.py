_base_ = ['mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py', '../_base_/s6la_coco.py']
model = dict(backbone=dict(type='S6LAResNet'))
train_cfg = dict(type='ResumableEpochBasedTrainLoop')
default_hooks = {{_base_.s6la_hooks}}
optim_wrapper = dict(constructor='S6LAOptimWrapperConstructor')
train_dataloader = val_dataloader = test_dataloader = {{_base_.loader_at_root}}
val_evaluator = test_evaluator = {{_base_.evaluator_at_root}}
