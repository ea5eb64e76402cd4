# In place of upstream's, for runs that survive a kill.
s6la_hooks = dict(
    checkpoint=dict(type='SafeCheckpointHook'),
    preemption=dict(type='PreemptionHook'),
    nonfinite=dict(type='NonFiniteHook'),
)
