# Beside a complete MMSegmentation config as base: registers S6LA and names ADE20K's place, the folder in ADE20K_ROOT,
# with images/ and annotations/. All label maps are read once before the training: a label that is no class shows then.
_base_ = './s6la.py'

custom_hooks = [dict(type='LabelCheckHook')]
loader_at_root = dict(dataset=dict(data_root='{{$ADE20K_ROOT:data/ade/ADEChallengeData2016}}'))
