# Beside a complete MMSegmentation config for Cityscapes as base: registers S6LA and names the data's place, the folder
# in CITYSCAPES_ROOT, with leftImg8bit/ and gtFine/ (*_labelTrainIds.png), each with train/ and val/.
_base_ = './s6la.py'

custom_hooks = [dict(type='LabelCheckHook')]
loader_at_root = dict(dataset=dict(data_root='{{$CITYSCAPES_ROOT:data/cityscapes}}/'))
