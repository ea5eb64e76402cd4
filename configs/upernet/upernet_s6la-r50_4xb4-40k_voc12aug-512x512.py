_base_ = ['mmseg::upernet/upernet_r50_4xb4-40k_voc12aug-512x512.py', '../_base_/s6la_voc12aug.py']
model = dict(backbone=dict(type='S6LAResNet', deep_stem=True))
train_cfg = dict(type='ResumableIterBasedTrainLoop')
default_hooks = {{_base_.s6la_hooks}}
optim_wrapper = dict(constructor='S6LAOptimWrapperConstructor')
both_parts = [dict(part, data_root=_base_.voc_root) for part in _base_.train_dataloader.dataset.datasets]
train_dataloader = dict(dataset=dict(datasets=both_parts))
val_dataloader = test_dataloader = {{_base_.loader_at_root}}
