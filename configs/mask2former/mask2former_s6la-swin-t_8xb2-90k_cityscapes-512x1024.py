# The base imports modules, too: what ../_base_ has for S6LA and the data cannot stand beside it, but for the hooks.
_base_ = ['mmseg::mask2former/mask2former_swin-t_8xb2-90k_cityscapes-512x1024.py', '../_base_/s6la_hooks.py']
custom_imports = dict(imports=['s6la_mm'])
checkpoint = 'https://download.openmmlab.com/mmclassification/v0/swin-transformer/convert/swin_tiny_patch4_window7_224-160bb0a5.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='S6LASwin',
        arch='tiny',
        pad_small_map=True,
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
)
train_cfg = dict(type='ResumableIterBasedTrainLoop')
default_hooks = {{_base_.s6la_hooks}}
custom_hooks = [dict(type='LabelCheckHook')]
optim_wrapper = dict(constructor='S6LAOptimWrapperConstructor')
loader_at_root = dict(dataset=dict(data_root='{{$CITYSCAPES_ROOT:data/cityscapes}}/'))
train_dataloader = val_dataloader = test_dataloader = loader_at_root
