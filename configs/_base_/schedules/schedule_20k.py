# MMSegmentation's schedules name the hooks too.
_base_ = ['mmseg::_base_/schedules/schedule_20k.py', '../s6la.py']

train_cfg = dict(type='ResumableIterBasedTrainLoop')
default_hooks = {{_base_.s6la_hooks}}
optim_wrapper = dict(constructor='S6LAOptimWrapperConstructor')
