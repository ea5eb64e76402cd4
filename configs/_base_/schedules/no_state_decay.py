# Parameters of S6LA that weight decay must not touch: it would pull the decay rates A, the steps Δ, the initial state
# and the gains of the norm to values that mean something else. (mmengine's norm_decay_mult does not know RMSNorm.)
no_state_decay = dict(
    custom_keys=dict(
        A_log=dict(decay_mult=0.0),
        dt_bias=dict(decay_mult=0.0),
        initial_state=dict(decay_mult=0.0),
        input_norm=dict(decay_mult=0.0),
    )
)
