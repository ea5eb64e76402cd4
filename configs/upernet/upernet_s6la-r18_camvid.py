_base_ = [
    '../_base_/models/upernet_s6la-r18_small.py',
    '../_base_/datasets/camvid.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/schedules/schedule_20k.py',
]
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=0.9, eta_min=1e-5, by_epoch=False, begin=50, end=850),
]
train_cfg = dict(max_iters=850, val_interval=425)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=425, max_keep_ckpts=2))
randomness = dict(seed=0)
