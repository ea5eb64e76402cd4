_base_ = './upernet_s6la-r18_camvid.py'
model = dict(
    backbone=dict(_delete_=True, type='S6LAPVTv2', arch='b0'),
    decode_head=dict(in_channels=[32, 64, 160, 256]),
    auxiliary_head=dict(in_channels=160),
)
