# Mask R-CNN on the generated data set from scratch, 500 iterations; half as wide as ResNet-18, as the quickstart.
title = 'Generated shapes, Mask R-CNN, ResNet-18 of half the width from scratch'
config = '../quickstart/mask-rcnn_s6la-r18_shapes.py'
metric = 'coco/bbox_mAP'
reference = 'ResNet-18'
seeds = [0, 1, 2]
shape = (160, 160)
cfg_options = {
    'train_cfg.max_iters': 500,
    'train_cfg.val_interval': 250,
    'param_scheduler.1.end': 500,
    'default_hooks.checkpoint.interval': 250,
    'default_hooks.checkpoint.max_keep_ckpts': 1,
}
backbone = dict(_delete_=True, depth=18, base_channels=32, norm_eval=False, zero_init_residual=False)
runs = [
    dict(name='ResNet-18', cfg_options={'model.backbone': dict(type='ResNet', **backbone)}),
    dict(name='RLA-ResNet-18', cfg_options={'model.backbone': dict(type='RLAResNet', **backbone)}),
    dict(name='MRLA-ResNet-18', cfg_options={'model.backbone': dict(type='MRLAResNet', **backbone)}),
    dict(name='S6LA-ResNet-18', cfg_options={'model.backbone': dict(type='S6LAResNet', **backbone)}),
]
del backbone
