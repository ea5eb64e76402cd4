# Beside a complete MMDetection config for Pascal VOC as base: registers S6LA and names the data's place, the folder in
# VOC_ROOT, with VOC2007/ and VOC2012/. The training set is a list of both years: each config puts the folder into it.
_base_ = './s6la.py'

voc_root = '{{$VOC_ROOT:data/VOCdevkit}}/'
loader_at_root = dict(dataset=dict(data_root=voc_root))
