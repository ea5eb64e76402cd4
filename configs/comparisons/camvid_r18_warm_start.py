# What does the state buy if it comes later? A plain network, continued plain and with a neutral state, equally long.
_base_ = './_base_/camvid_half_narrow.py'
title = 'CamVid at half resolution, UperNet, ResNet-18 of half the width: the state added to a trained network'
reference = 'continued plain'
seeds = [0, 1, 2]
plain = dict(_delete_=True, type='mmdet.ResNet', depth=18, base_channels=32, norm_eval=False, zero_init_residual=False)
runs = [
    dict(name='plain', cfg_options={'model.backbone': plain}),
    dict(name='continued plain', start='plain', cfg_options={'model.backbone': plain}),
    dict(name='continued with S6LA', start='plain'),
    dict(name='the same, steps from 0.1 to 1', start='plain', cfg_options={'model.backbone.dt_range': (0.1, 1.0)}),
]
del plain
