# MMPreTrain has no PVTv2: its authors train it as Swin-T, with less drop path and without gradient clipping.
_base_ = ['mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py', '../_base_/s6la_imagenet.py']
model = dict(
    backbone=dict(_delete_=True, type='S6LAPVTv2', arch='b0', drop_path_rate=0.1, out_indices=(3,)),
    head=dict(in_channels=256),
)
train_cfg = dict(_delete_=True, type='ResumableEpochBasedTrainLoop', max_epochs={{_base_.train_cfg.max_epochs}})
default_hooks = {{_base_.s6la_hooks}}
optim_wrapper = dict(constructor='S6LAOptimWrapperConstructor', clip_grad=None)
train_dataloader = dict(_base_.loader_at_root, batch_size=128)
val_dataloader = test_dataloader = {{_base_.loader_at_root}}
