"""tools/model_converters/inspect_checkpoint.py: what it says about a file, and about two."""

import torch
from checkpoint_sources import make_source, rla_state
from tool_runner import load

TOOL = load('model_converters/inspect_checkpoint.py')
describe, compare = TOOL.describe, TOOL.compare


def test_describe(saved):
    _, state = make_source('torchvision ResNet-18')
    state['layer1.0.conv1.weight'][0, 0, 0, 0] = float('nan')
    state['bn1.running_var'][:3] = float('inf')
    content = describe(saved(dict(state_dict=state | {'note': 'hello'}, meta=dict(epoch=3))))
    assert content['layouts'] == [dict(backbone='S6LAResNet', name='resnet', prefix='')]
    assert content['architectures'] == ['s6la_r18']
    assert content['part'] == 'state_dict' and content['meta'] == dict(meta=dict(epoch=3))
    assert content['others'] == {'note': 'str'} and content['dtypes'] == {'torch.float32'[6:]: 102, 'int64': 20}
    assert content['tensors']['conv1.weight'] == dict(shape=[64, 3, 7, 7], dtype='float32')
    assert content['not_finite'] == {
        'bn1.running_var': dict(nan=0, inf=3),
        'layer1.0.conv1.weight': dict(nan=1, inf=0),
    }
    assert content['parameters'] == sum(tensor.numel() for tensor in state.values())


def test_describe_other_networks(saved):
    assert describe(saved(rla_state()))['architectures'] == ['s6la_r18']
    content = describe(saved({'model.embed_tokens.weight': torch.ones(2)}))
    assert content['layouts'] == content['architectures'] == []
    _, state = make_source('timm ViT')
    both = {f'{name}.{key}': tensor for name in ('student', 'teacher') for key, tensor in state.items()}
    assert '2 networks' in describe(saved(both))['layouts'][0]['problem']


def test_compare(saved):
    first = dict(a=torch.ones(2), b=torch.ones(3), c=torch.ones(2), d=torch.ones(2), e=torch.ones(0), f=torch.ones(1))
    second = dict(
        b=torch.ones(4),
        c=torch.tensor([1.0, 1.5]),
        d=torch.ones(2).half(),
        e=torch.ones(0),
        f=torch.ones(1),
        g=torch.ones(1),
    )
    content = compare(saved(first, 'a.pth'), saved(second, 'b.pth'))
    assert content == dict(
        only_first=['a'],
        only_second=['g'],
        shapes=dict(b=[[3], [4]]),
        dtypes=dict(d=['float32', 'float16']),
        values=dict(c=0.5),
        equal=2,
    )
