# COCO for plain ViTs: large-scale jitter, and every image padded to 1024 x 1024, as ViTDet does: a position embedding
# that was learned on squares would be squeezed into other shapes. COCO_ROOT names the folder.
_base_ = ['mmdet::common/lsj-100e_coco-instance.py', '../s6la.py']

data_root = '{{$COCO_ROOT:data/coco}}/'
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(1024, 1024), keep_ratio=True),
    dict(type='Pad', size=(1024, 1024), pad_val=dict(img=(114, 114, 114))),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(dataset=dict(dataset=dict(data_root=data_root)))
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
train_cfg = dict(type='ResumableEpochBasedTrainLoop')
default_hooks = {{_base_.s6la_hooks}}
