_base_ = ['mmpretrain::convnext/convnext-tiny_32xb128_in1k.py', '../_base_/s6la_imagenet.py']
model = dict(backbone=dict(type='S6LAConvNeXt'))
train_cfg = dict(_delete_=True, type='ResumableEpochBasedTrainLoop', max_epochs={{_base_.train_cfg.max_epochs}})
default_hooks = {{_base_.s6la_hooks}}
optim_wrapper = dict(constructor='S6LAOptimWrapperConstructor')
train_dataloader = val_dataloader = test_dataloader = {{_base_.loader_at_root}}
