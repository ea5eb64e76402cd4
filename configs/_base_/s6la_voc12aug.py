# Beside a complete MMSegmentation config for Pascal VOC 2012 as base: registers S6LA and names the data's place, the
# folder VOC2012 in VOC_ROOT, with SBD's label maps in SegmentationClassAug/, as MMSegmentation's converter writes them.
# The training set is a list of both: each config puts the folder into it.
_base_ = './s6la.py'

custom_hooks = [dict(type='LabelCheckHook')]
voc_root = '{{$VOC_ROOT:data/VOCdevkit}}/VOC2012'
loader_at_root = dict(dataset=dict(data_root=voc_root))
