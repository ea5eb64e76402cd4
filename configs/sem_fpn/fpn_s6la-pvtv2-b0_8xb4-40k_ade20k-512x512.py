# MMSegmentation has no PVTv2: this is the recipe of its authors on the model of its relative, Twins-PCPVT.
_base_ = ['mmseg::twins/twins_pcpvt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512.py', '../_base_/s6la_ade20k.py']
model = dict(
    backbone=dict(
        _delete_=True,
        type='S6LAPVTv2',
        arch='b0',
        init_cfg=dict(checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b0.pth'),
    ),
    neck=dict(in_channels=[32, 64, 160, 256]),
)
optim_wrapper = dict(constructor='S6LAOptimWrapperConstructor', optimizer=dict(lr=2e-4))
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=40000, by_epoch=False)]
train_cfg = dict(type='ResumableIterBasedTrainLoop', max_iters=40000, val_interval=4000)
default_hooks = dict(_base_.s6la_hooks, checkpoint=dict(type='SafeCheckpointHook', interval=4000))
train_dataloader = val_dataloader = test_dataloader = {{_base_.loader_at_root}}
