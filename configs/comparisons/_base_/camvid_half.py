# CamVid at half resolution, 400 iterations: a training takes minutes on two cores, and its evaluation seconds. Labels
# are compared at full resolution.
config = '../upernet/upernet_s6la-r18_camvid.py'
metric = 'mIoU'
shape = (128, 160)
cfg_options = {
    'train_cfg.max_iters': 400,
    'train_cfg.val_interval': 100,
    'param_scheduler.1.end': 400,
    'default_hooks.checkpoint.interval': 100,
    'default_hooks.checkpoint.max_keep_ckpts': 1,
    'model.data_preprocessor.size': (128, 160),
    'model.test_cfg': dict(_delete_=True, mode='whole'),
    'train_dataloader.dataset.pipeline': [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='Resize', scale=(240, 180), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(128, 160), cat_max_ratio=0.75),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackSegInputs'),
    ],
    'val_dataloader.dataset.pipeline': [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(240, 180), keep_ratio=True),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs'),
    ],
}
