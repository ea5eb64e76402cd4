# A UperNet that trains from scratch on a CPU: S6LA-ResNet-18 and 64 channels, for CamVid's 11 classes.
_base_ = 'mmseg::_base_/models/upernet_r50.py'

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(192, 256)),
    backbone=dict(type='S6LAResNet', depth=18, norm_cfg=norm_cfg, zero_init_residual=False),
    decode_head=dict(in_channels=[64, 128, 256, 512], channels=64, num_classes=11, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=256, channels=64, num_classes=11, norm_cfg=norm_cfg),
)
