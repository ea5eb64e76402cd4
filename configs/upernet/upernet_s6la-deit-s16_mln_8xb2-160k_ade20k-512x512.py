_base_ = ['mmseg::vit/vit_deit-s16_mln_upernet_8xb2-160k_ade20k-512x512.py', '../_base_/s6la_ade20k.py']
checkpoint = 'https://download.openmmlab.com/mmclassification/v0/deit/deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth'
model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='S6LAViT',
        arch='deit-small',
        img_size=512,
        out_indices=(2, 5, 8, 11),
        out_type='featmap',
        final_norm=False,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
)
train_cfg = dict(type='ResumableIterBasedTrainLoop')
default_hooks = {{_base_.s6la_hooks}}
optim_wrapper = dict(constructor='S6LAOptimWrapperConstructor')
train_dataloader = val_dataloader = test_dataloader = {{_base_.loader_at_root}}
