# Beside a complete MMDetection config as base: registers S6LA and names COCO's place, the folder in COCO_ROOT.
_base_ = './s6la.py'

loader_at_root = dict(dataset=dict(data_root='{{$COCO_ROOT:data/coco}}/'))
evaluator_at_root = dict(ann_file='{{$COCO_ROOT:data/coco}}/annotations/instances_val2017.json')
