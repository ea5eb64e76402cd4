_base_ = ['mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py', '../_base_/s6la_ade20k.py']
model = dict(backbone=dict(type='S6LAResNet', deep_stem=True))
train_cfg = dict(type='ResumableIterBasedTrainLoop')
default_hooks = {{_base_.s6la_hooks}}
optim_wrapper = dict(constructor='S6LAOptimWrapperConstructor')
train_dataloader = val_dataloader = test_dataloader = {{_base_.loader_at_root}}
