# Does the gain grow with depth?
_base_ = './_base_/camvid_half_narrow.py'
title = 'CamVid at half resolution, UperNet, half the width, from scratch: depths 18, 34, 50'
reference = 'ResNet-18'
seeds = [0, 1, 2]
plain = dict(_delete_=True, type='mmdet.ResNet', base_channels=32, norm_eval=False, zero_init_residual=False)
state = dict(_delete_=True, type='S6LAResNet', base_channels=32, norm_eval=False, zero_init_residual=False)
wide = {'model.decode_head.in_channels': [128, 256, 512, 1024], 'model.auxiliary_head.in_channels': 512}
runs = [
    dict(name='ResNet-18', cfg_options={'model.backbone': dict(depth=18, **plain)}),
    dict(name='S6LA-ResNet-18', cfg_options={'model.backbone': dict(depth=18, **state)}),
    dict(name='ResNet-34', cfg_options={'model.backbone': dict(depth=34, **plain)}),
    dict(name='S6LA-ResNet-34', cfg_options={'model.backbone': dict(depth=34, **state)}),
    dict(name='ResNet-50', cfg_options={'model.backbone': dict(depth=50, **plain), **wide}),
    dict(name='S6LA-ResNet-50', cfg_options={'model.backbone': dict(depth=50, **state), **wide}),
]
del plain, state, wide
