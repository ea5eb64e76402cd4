# What S6LA needs in any config: its registered modules; without them "S6LAResNet is not in the mmdet::model registry".
_base_ = './s6la_hooks.py'

custom_imports = dict(imports=['s6la_mm'], allow_failed_imports=False)
