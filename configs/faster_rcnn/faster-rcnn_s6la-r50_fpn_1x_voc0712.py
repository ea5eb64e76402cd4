_base_ = ['mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py', '../_base_/s6la_voc0712.py']
model = dict(backbone=dict(type='S6LAResNet'))
train_cfg = dict(type='ResumableEpochBasedTrainLoop')
default_hooks = {{_base_.s6la_hooks}}
optim_wrapper = dict(constructor='S6LAOptimWrapperConstructor')
both_years = [dict(year, data_root=_base_.voc_root) for year in _base_.train_dataloader.dataset.dataset.datasets]
train_dataloader = dict(dataset=dict(dataset=dict(datasets=both_years)))
val_dataloader = test_dataloader = {{_base_.loader_at_root}}
