_base_ = 'mmdet::_base_/default_runtime.py'

# What puts S6LA into the registries; without it: "S6LAResNet is not in the mmdet::model registry".
custom_imports = dict(imports=['s6la_mm'], allow_failed_imports=False)
