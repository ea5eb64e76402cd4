# Beside a complete MMPreTrain config as base: registers S6LA and names ImageNet's place, the folder in IMAGENET_ROOT,
# with train/ and val/.
_base_ = './s6la.py'

loader_at_root = dict(dataset=dict(data_root='{{$IMAGENET_ROOT:data/imagenet}}'))
