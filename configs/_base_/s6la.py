# What S6LA needs in any config: its registered modules; without them "S6LAResNet is not in the mmdet::model registry".
custom_imports = dict(imports=['s6la_mm'], allow_failed_imports=False)

# In place of upstream's, for runs that survive a kill.
s6la_hooks = dict(
    checkpoint=dict(type='SafeCheckpointHook'),
    preemption=dict(type='PreemptionHook'),
    nonfinite=dict(type='NonFiniteHook'),
)
