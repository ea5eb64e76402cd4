_base_ = [
    'mmseg::swin/swin-small-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
    '../_base_/s6la_ade20k.py',
]
checkpoint = 'https://download.openmmlab.com/mmclassification/v0/swin-transformer/convert/swin_small_patch4_window7_224-cc7a01c9.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='S6LASwin',
        arch='small',
        pad_small_map=True,
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
)
train_cfg = dict(type='ResumableIterBasedTrainLoop')
default_hooks = {{_base_.s6la_hooks}}
optim_wrapper = dict(constructor='S6LAOptimWrapperConstructor')
train_dataloader = val_dataloader = test_dataloader = {{_base_.loader_at_root}}
