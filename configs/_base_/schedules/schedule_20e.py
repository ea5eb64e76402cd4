_base_ = ['mmdet::_base_/schedules/schedule_20e.py', './no_state_decay.py']

optim_wrapper = dict(paramwise_cfg={{_base_.no_state_decay}})
