# Beside a complete panoptic MMDetection config as base: registers S6LA and names COCO's place, the folder in COCO_ROOT,
# with annotations/panoptic_{train,val}2017.json and the folders of the label maps of the same names.
_base_ = './s6la.py'

loader_at_root = dict(dataset=dict(data_root='{{$COCO_ROOT:data/coco}}/'))
evaluator_at_root = [
    dict(
        type='CocoPanopticMetric',
        ann_file='{{$COCO_ROOT:data/coco}}/annotations/panoptic_val2017.json',
        seg_prefix='{{$COCO_ROOT:data/coco}}/annotations/panoptic_val2017/',
    ),
    dict(
        type='CocoMetric',
        ann_file='{{$COCO_ROOT:data/coco}}/annotations/instances_val2017.json',
        metric=['bbox', 'segm'],
    ),
]
