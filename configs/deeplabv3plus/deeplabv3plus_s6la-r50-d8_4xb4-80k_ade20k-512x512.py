_base_ = ['mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py', '../_base_/s6la_ade20k.py']
model = dict(backbone=dict(type='S6LAResNet', deep_stem=True))
optim_wrapper = dict(paramwise_cfg={{_base_.no_state_decay}})
train_dataloader = {{_base_.loader_at_root}}
val_dataloader = {{_base_.loader_at_root}}
test_dataloader = {{_base_.loader_at_root}}
