_base_ = ['mmpretrain::resnet/resnet152_8xb32_in1k.py', '../_base_/s6la_imagenet.py']
model = dict(backbone=dict(type='S6LAResNet', norm_eval=False))
optim_wrapper = dict(paramwise_cfg={{_base_.no_state_decay}})
train_dataloader = {{_base_.loader_at_root}}
val_dataloader = {{_base_.loader_at_root}}
test_dataloader = {{_base_.loader_at_root}}
