# Mask R-CNN on a plain ViT as in ViTDet (arXiv 2203.16527), but without its relative position embeddings.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

norm_cfg = dict(type='mmpretrain.LN2d', eps=1e-6)
model = dict(
    data_preprocessor=dict(batch_augments=[dict(type='BatchFixedSizePad', size=(1024, 1024), pad_mask=True)]),
    backbone=dict(
        _delete_=True,
        type='S6LAViT',
        arch='base',
        img_size=1024,
        with_cls_token=False,
        out_type='featmap',
        final_norm=False,
        window_size=14,
        drop_path_rate=0.1,
    ),
    neck=dict(_delete_=True, type='SimpleFPN', in_channels=768),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)
