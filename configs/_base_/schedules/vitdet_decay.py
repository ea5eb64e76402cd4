# ViTDet's: every layer of the backbone learns 0.7 times as fast as the one after it, and only matrices decay.
_base_ = './no_state_decay.py'

no_state_decay = dict(
    layer_decay_rate=0.7, bias_decay_mult=0.0, flat_decay_mult=0.0, custom_keys=dict(pos_embed=dict(decay_mult=0.0))
)
