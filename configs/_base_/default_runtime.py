_base_ = ['mmdet::_base_/default_runtime.py', './s6la.py']

default_hooks = {{_base_.s6la_hooks}}
