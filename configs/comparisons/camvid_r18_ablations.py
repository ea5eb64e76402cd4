# The free choices of S6LA's definition, one changed at a time, beside the plain network.
_base_ = './_base_/camvid_half_narrow.py'
title = 'CamVid at half resolution, UperNet, S6LA-ResNet-18 of half the width: ablations'
reference = 'default'
seeds = [0, 1, 2]
cfg_options = {'train_cfg.max_iters': 250, 'param_scheduler.1.end': 250, 'train_cfg.val_interval': 250}
plain = dict(_delete_=True, type='mmdet.ResNet', depth=18, base_channels=32, norm_eval=False, zero_init_residual=False)
runs = [
    dict(name='default'),
    dict(name='plain', cfg_options={'model.backbone': plain}),
    dict(name='steps from 0.1 to 1', cfg_options={'model.backbone.dt_range': (0.1, 1.0)}),
    dict(name='reads start at Kaiming', cfg_options={'model.backbone.read_init': 'kaiming'}),
    dict(name='no input norm', cfg_options={'model.backbone.input_norm': None}),
    dict(name='zoh', cfg_options={'model.backbone.discretization': 'zoh'}),
    dict(name='cell per block', cfg_options={'model.backbone.shared_cell': False}),
    dict(name='initial state zero', cfg_options={'model.backbone.learned_initial_state': False}),
    dict(name='state_dim 16', cfg_options={'model.backbone.state_dim': 16}),
    dict(name='state_dim 64', cfg_options={'model.backbone.state_dim': 64}),
    dict(name='stages 1, 2', cfg_options={'model.backbone.stage_with_state': (True, True, False, False)}),
    dict(name='stages 3, 4', cfg_options={'model.backbone.stage_with_state': (False, False, True, True)}),
]
del plain
