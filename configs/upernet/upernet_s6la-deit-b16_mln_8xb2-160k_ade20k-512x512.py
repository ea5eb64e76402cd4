_base_ = './upernet_s6la-deit-s16_mln_8xb2-160k_ade20k-512x512.py'
deit = 'https://download.openmmlab.com/mmclassification/v0/deit/'
checkpoint = deit + 'deit-base_3rdparty_pt-16xb64_in1k_20211124-6f40c188.pth'
model = dict(
    backbone=dict(arch='deit-base', init_cfg=dict(checkpoint=checkpoint)),
    neck=dict(in_channels=[768, 768, 768, 768], out_channels=768),
    decode_head=dict(in_channels=[768, 768, 768, 768]),
    auxiliary_head=dict(in_channels=768),
)
