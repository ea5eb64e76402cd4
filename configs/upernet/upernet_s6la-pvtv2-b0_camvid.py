_base_ = './upernet_s6la-r18_camvid.py'
model = dict(
    backbone=dict(_delete_=True, type='S6LAPVTv2', arch='b0'),
    decode_head=dict(in_channels=[32, 64, 160, 256]),
    auxiliary_head=dict(in_channels=160),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=0.9, eta_min=1e-5, by_epoch=False, begin=50, end=780),
]
train_cfg = dict(max_iters=780, val_interval=390)
default_hooks = dict(checkpoint=dict(interval=390))
