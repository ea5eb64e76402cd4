_base_ = ['mmseg::upernet/upernet_r50_4xb2-80k_cityscapes-512x1024.py', '../_base_/s6la_cityscapes.py']
model = dict(backbone=dict(type='S6LAResNet', deep_stem=True))
train_cfg = dict(type='ResumableIterBasedTrainLoop')
default_hooks = {{_base_.s6la_hooks}}
optim_wrapper = dict(constructor='S6LAOptimWrapperConstructor')
train_dataloader = val_dataloader = test_dataloader = {{_base_.loader_at_root}}
