_base_ = ['mmseg::vit/vit_deit-b16_mln_upernet_8xb2-160k_ade20k-512x512.py', '../_base_/s6la_ade20k.py']
checkpoint = (
    'https://download.openmmlab.com/mmclassification/v0/deit/deit-base_3rdparty_pt-16xb64_in1k_20211124-6f40c188.pth'
)
model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='S6LAViT',
        arch='deit-base',
        img_size=512,
        out_indices=(2, 5, 8, 11),
        out_type='featmap',
        final_norm=False,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
)
optim_wrapper = dict(paramwise_cfg={{_base_.no_state_decay}})
train_dataloader = {{_base_.loader_at_root}}
val_dataloader = {{_base_.loader_at_root}}
test_dataloader = {{_base_.loader_at_root}}
