_base_ = 'mmdet::_base_/schedules/schedule_20e.py'

train_cfg = dict(type='ResumableEpochBasedTrainLoop')
optim_wrapper = dict(constructor='S6LAOptimWrapperConstructor')
