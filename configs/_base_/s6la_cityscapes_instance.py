# Beside a complete MMDetection config for Cityscapes as base: registers S6LA and names the data's place, the folder in
# CITYSCAPES_ROOT, with leftImg8bit/, gtFine/ and annotations/, as MMDetection's converter writes them. The training set
# is wrapped.
_base_ = './s6la.py'

loader_at_root = dict(dataset=dict(data_root='{{$CITYSCAPES_ROOT:data/cityscapes}}/'))
train_loader_at_root = dict(dataset=loader_at_root)
evaluator_at_root = [
    dict(
        type='CocoMetric',
        ann_file='{{$CITYSCAPES_ROOT:data/cityscapes}}/annotations/instancesonly_filtered_gtFine_val.json',
        metric=['bbox', 'segm'],
    ),
    dict(
        type='CityScapesMetric',
        seg_prefix='{{$CITYSCAPES_ROOT:data/cityscapes}}/gtFine/val',
        outfile_prefix='./work_dirs/cityscapes_metric/instance',
    ),
]
