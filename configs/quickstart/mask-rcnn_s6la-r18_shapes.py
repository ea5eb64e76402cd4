_base_ = [
    '../_base_/models/mask-rcnn_s6la-r18_small.py',
    '../_base_/datasets/shapes_instance.py',
    '../_base_/schedules/schedule_800i.py',
    '../_base_/default_runtime.py',
]
default_hooks = dict(
    logger=dict(interval=20, log_metric_by_epoch=False), checkpoint=dict(by_epoch=False, interval=400, max_keep_ckpts=2)
)
log_processor = dict(by_epoch=False, window_size=20)
randomness = dict(seed=0)
