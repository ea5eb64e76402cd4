# As upstream, it starts from MMDetection's Mask R-CNN with a plain ResNet-50, trained on COCO (load_from).
_base_ = ['mmdet::cityscapes/mask-rcnn_r50_fpn_1x_cityscapes.py', '../_base_/s6la_cityscapes_instance.py']
model = dict(backbone=dict(type='S6LAResNet'))
train_cfg = dict(type='ResumableEpochBasedTrainLoop')
default_hooks = {{_base_.s6la_hooks}}
optim_wrapper = dict(constructor='S6LAOptimWrapperConstructor')
train_dataloader = {{_base_.train_loader_at_root}}
val_dataloader = test_dataloader = {{_base_.loader_at_root}}
val_evaluator = test_evaluator = {{_base_.evaluator_at_root}}
