# UperNet on CamVid from scratch, at equal iterations: ResNet-18 plain and with three ways of layer aggregation.
_base_ = './_base_/camvid_half.py'
title = 'CamVid at half resolution, UperNet, ResNet-18 from scratch'
reference = 'ResNet-18'
seeds = [0, 1, 2, 3, 4]
backbone = dict(_delete_=True, depth=18, norm_eval=False, zero_init_residual=False)
runs = [
    dict(name='ResNet-18', cfg_options={'model.backbone': dict(type='mmdet.ResNet', **backbone)}),
    dict(name='RLA-ResNet-18', cfg_options={'model.backbone': dict(type='RLAResNet', **backbone)}),
    dict(name='MRLA-ResNet-18', cfg_options={'model.backbone': dict(type='MRLAResNet', **backbone)}),
    dict(name='S6LA-ResNet-18', cfg_options={'model.backbone': dict(type='S6LAResNet', **backbone)}),
]
del backbone
