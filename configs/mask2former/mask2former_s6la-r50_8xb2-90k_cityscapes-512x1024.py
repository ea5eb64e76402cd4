# The base imports modules, too: what ../_base_ has for S6LA and the data cannot stand beside it, but for the hooks.
_base_ = ['mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py', '../_base_/s6la_hooks.py']
custom_imports = dict(imports=['s6la_mm'])
model = dict(backbone=dict(type='S6LAResNet', norm_eval=False))  # MMSegmentation's default
train_cfg = dict(type='ResumableIterBasedTrainLoop')
default_hooks = {{_base_.s6la_hooks}}
custom_hooks = [dict(type='LabelCheckHook')]
optim_wrapper = dict(constructor='S6LAOptimWrapperConstructor')
loader_at_root = dict(dataset=dict(data_root='{{$CITYSCAPES_ROOT:data/cityscapes}}/'))
train_dataloader = val_dataloader = test_dataloader = loader_at_root
