_base_ = ['mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py', '../_base_/s6la_ade20k.py']
model = dict(backbone=dict(type='S6LAResNet', deep_stem=True))
optim_wrapper = dict(paramwise_cfg={{_base_.no_state_decay}})
train_dataloader = {{_base_.loader_at_root}}
val_dataloader = {{_base_.loader_at_root}}
test_dataloader = {{_base_.loader_at_root}}
