# MMSegmentation's recipe for ConvNeXt-T is the one for Swin-T, but for the optimizer and how images are cut in tests.
_base_ = './upernet_s6la-swin-t_8xb2-160k_ade20k-512x512.py'
checkpoint = 'https://download.openmmlab.com/mmclassification/v0/convnext/downstream/convnext-tiny_3rdparty_32xb128-noema_in1k_20220301-795e9634.pth'
backbone = dict(
    _delete_=True,
    type='S6LAConvNeXt',
    out_indices=[0, 1, 2, 3],
    drop_path_rate=0.4,
    layer_scale_init_value=1.0,
    gap_before_final_norm=False,
    init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.'),
)
model = dict(backbone=backbone, test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)))
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(lr=0.0001, weight_decay=0.05),
    # Upstream's constructor lets only matrices decay, so it spares the state, too.
    constructor='LearningRateDecayOptimizerConstructor',
    paramwise_cfg=dict(_delete_=True, decay_rate=0.9, decay_type='stage_wise', num_layers=6),
)
