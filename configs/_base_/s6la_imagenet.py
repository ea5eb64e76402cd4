# Beside a complete MMPreTrain config as base: registers S6LA and names ImageNet's place, the folder in IMAGENET_ROOT,
# with train/ and val/.
_base_ = './s6la.py'

# The other two are what MMPreTrain's own tools add to each of its configs.
loader_at_root = dict(
    dataset=dict(data_root='{{$IMAGENET_ROOT:data/imagenet}}'),
    collate_fn=dict(type='default_collate'),
    persistent_workers=True,
)
