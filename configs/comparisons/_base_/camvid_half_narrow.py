# The same with backbones of half the width (base_channels=32), for plans of many runs: half the time of a run.
_base_ = './camvid_half.py'
cfg_options = {
    'model.backbone.base_channels': 32,
    'model.decode_head.in_channels': [32, 64, 128, 256],
    'model.auxiliary_head.in_channels': 128,
    'train_cfg.val_interval': 200,
}
