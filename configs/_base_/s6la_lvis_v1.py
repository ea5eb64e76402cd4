# Beside a complete MMDetection config for LVIS v1 as base: registers S6LA and names the data's place, the folder in
# LVIS_ROOT, with annotations/lvis_v1_{train,val}.json and COCO's train2017/ and val2017/. The training set is wrapped.
_base_ = './s6la.py'

loader_at_root = dict(dataset=dict(data_root='{{$LVIS_ROOT:data/lvis_v1}}/'))
train_loader_at_root = dict(dataset=loader_at_root)
evaluator_at_root = dict(ann_file='{{$LVIS_ROOT:data/lvis_v1}}/annotations/lvis_v1_val.json')
