# The free choices of S6LA's definition, one changed at a time, as in camvid_r18.py.
_base_ = './_base_/camvid_half.py'
title = 'CamVid at half resolution, UperNet, S6LA-ResNet-18: ablations'
reference = 'default'
seeds = [0, 1, 2]
runs = [
    dict(name='default'),
    dict(name='state_dim 16', cfg_options={'model.backbone.state_dim': 16}),
    dict(name='state_dim 64', cfg_options={'model.backbone.state_dim': 64}),
    dict(name='zoh', cfg_options={'model.backbone.discretization': 'zoh'}),
    dict(name='no input norm', cfg_options={'model.backbone.input_norm': None}),
    dict(name='cell per block', cfg_options={'model.backbone.shared_cell': False}),
    dict(name='reads start at Kaiming', cfg_options={'model.backbone.read_init': 'kaiming'}),
    dict(name='initial state zero', cfg_options={'model.backbone.learned_initial_state': False}),
    dict(name='stages 1, 2', cfg_options={'model.backbone.stage_with_state': (True, True, False, False)}),
    dict(name='stages 3, 4', cfg_options={'model.backbone.stage_with_state': (False, False, True, True)}),
]
