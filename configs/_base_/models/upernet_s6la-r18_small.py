# A UperNet that trains from scratch on a CPU: S6LA-ResNet-18 and 64 channels, for CamVid's 11 classes.
_base_ = 'mmseg::_base_/models/upernet_r50.py'

norm_cfg = dict(type='BN', requires_grad=True)
# Square roots of ENet's weights 1 / log(1.02 + share of the class), over their mean: poles, signs, fences, pedestrians
# and bicyclists have 0.3 to 1.2 % of the pixels each. reduction='none', as mmseg would look up the weight of label 255.
weighted = dict(
    type='CrossEntropyLoss',
    reduction='none',
    class_weight=[0.95, 0.83, 2.33, 0.74, 1.58, 1.19, 2.26, 2.28, 1.44, 2.48, 2.67],
)
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(192, 256)),
    backbone=dict(type='S6LAResNet', depth=18, norm_cfg=norm_cfg, zero_init_residual=False),
    decode_head=dict(
        in_channels=[64, 128, 256, 512],
        channels=64,
        num_classes=11,
        norm_cfg=norm_cfg,
        loss_decode=weighted,
    ),
    auxiliary_head=dict(
        in_channels=256, channels=64, num_classes=11, norm_cfg=norm_cfg, loss_decode=dict(loss_weight=0.4, **weighted)
    ),
    # At the size of the training crops, so that the pooled context is as in training.
    test_cfg=dict(mode='slide', crop_size=(192, 256), stride=(168, 224)),
)
