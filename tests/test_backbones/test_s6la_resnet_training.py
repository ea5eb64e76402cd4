"""S6LAResNet in training: gradients, freezing, checkpointing, initialisation, and that it keeps no state."""

import copy
import itertools
import math

import pytest
import torch
from forked import Forked
from mmdet.models.backbones import ResNet
from mmengine.model import BaseModule
from releases import HALF_ON_CPU
from torch import nn
from torch.utils._pytree import tree_flatten

from s6la_mm.backbones import S6LAResNet
from s6la_mm.layers import S6LAMapCell, StateRead

ALL_STAGES = [flags for flags in itertools.product((True, False), repeat=4) if any(flags)]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """init_weights of a root module logs one line per parameter."""
    monkeypatch.setattr(BaseModule, '_dump_init_info', lambda self: None)


def build(depth=18, **options):
    return S6LAResNet(depth, **dict(base_channels=8, state_dim=8, norm_eval=False) | options)


def with_readers(network, seed=0):
    """The network with readers that read; their zeros would cut the state off the outputs."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, StateRead):
            nn.init.normal_(module.weight, std=0.2)
    nn.init.normal_(network.initial_state)
    return network


def images(batch=2, size=(33, 65), seed=0):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def loss_of(outs):
    """A random projection: a plain sum has no gradient behind a batch norm."""
    generator = torch.Generator().manual_seed(7)
    return sum((out * torch.randn(out.shape, generator=generator)).mean() for out in outs)


def assert_trainable_get_gradients(network, size=(16, 16)):
    outs = network(images(batch=1, size=size))
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert any(out.requires_grad for out in outs) == bool(trainable)
    if trainable:
        loss_of(outs).backward()
    for name, parameter in trainable.items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)


@pytest.mark.parametrize('stage_with_state', ALL_STAGES, ids=lambda flags: ''.join('TF'[not f] for f in flags))
@pytest.mark.parametrize('out_state', [False, True])
def test_every_trainable_parameter_gets_a_gradient(stage_with_state, out_state):
    """What DDP needs; with every frozen_stages, which must leave nothing half-frozen."""
    for frozen_stages in range(-1, 5):
        network = build(
            stage_with_state=stage_with_state,
            out_state=out_state,
            frozen_stages=frozen_stages,
            norm_eval=True,
            base_channels=4,
        )
        assert_trainable_get_gradients(network.train())


@pytest.mark.parametrize('num_stages', [1, 2, 3])
@pytest.mark.parametrize('out_state', [False, True])
def test_every_trainable_parameter_gets_a_gradient_with_fewer_stages(num_stages, out_state):
    flags = [f for f in itertools.product((True, False), repeat=num_stages) if any(f)]
    for stage_with_state, frozen_stages in itertools.product(flags, (-1, num_stages - 1, num_stages)):
        network = build(
            num_stages=num_stages,
            strides=(1, 2, 2)[:num_stages],
            dilations=(1, 1, 1)[:num_stages],
            out_indices=(num_stages - 1,),
            stage_with_state=stage_with_state,
            out_state=out_state,
            frozen_stages=frozen_stages,
            norm_eval=True,
        )
        assert_trainable_get_gradients(network.train())


@pytest.mark.parametrize(
    'options',
    [
        dict(depth=50, input_norm=None, discretization='zoh'),
        dict(depth=50, out_indices=(3,)),
        dict(depth=50, deep_stem=True, avg_down=True, norm_cfg=dict(type='GN', num_groups=2), frozen_stages=1),
        dict(depth=50, groups=4, base_width=4, with_cp=True),
        dict(depth=50, plugins=[dict(cfg=dict(type='ECALayer'), position='after_conv3')]),
        dict(depth=50, dcn=dict(type='DCNv2', deform_groups=1), stage_with_dcn=(False, True, False, False)),
        dict(depth=34, with_cp=True, out_state=True, frozen_stages=2),
        dict(depth=18, shared_cell=False, frozen_stages=1),
        dict(depth=18, shared_cell=False, read_init='kaiming', learned_initial_state=False, with_cp=True),
    ],
    ids=str,
)
def test_every_trainable_parameter_gets_a_gradient_with_options(options):
    assert_trainable_get_gradients(build(**options).train(), size=(33, 65))


@pytest.mark.parametrize(
    'options',
    [dict(), dict(depth=50, out_state=True), dict(stage_with_state=(True, False, False, False))],
    ids=str,
)
def test_every_parameter_learns(options):
    """No gradient is stuck at zero: all move within a few steps, the readers after a write from the first."""
    network = build(**options, zero_init_residual=False)  # its zeros would hold the readers back one step
    network.init_weights()
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    zero_after = []
    for step in range(4):
        optimizer.zero_grad()
        loss_of(network(images(seed=step))).backward()
        zero_after.append({name for name, p in network.named_parameters() if not p.grad.ne(0).any()})
        optimizer.step()
    # h⁰ starts at zero, so what acts on it alone learns only once it has moved: the first reader, and the decay of the
    # first write, which is that of the whole cell where the cell writes once.
    first_stage = next(i for i, carried in enumerate(network.stage_with_state) if carried) + 1
    first_reader = f'layer{first_stage}.0.read.weight'
    assert not {name for name in zero_after[0] if name.endswith('read.weight')} - {first_reader}
    assert zero_after[1] <= {first_reader, f'cells.layer{first_stage}.A_log'}
    assert not zero_after[3]


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('frozen_stages', range(-1, 5))
@pytest.mark.parametrize('deep_stem', [False, True])
def test_frozen_stages(depth, frozen_stages, deep_stem):
    network = build(depth, frozen_stages=frozen_stages, deep_stem=deep_stem, out_state=True)
    frozen_modules = ([network.stem] if deep_stem else [network.conv1, network.norm1]) if frozen_stages >= 0 else []
    for stage in range(1, frozen_stages + 1):
        frozen_modules += [getattr(network, f'layer{stage}'), network.cells[f'layer{stage}']]
    frozen = {p for module in frozen_modules for p in module.parameters()}
    if frozen_stages >= 1:
        frozen.add(network.initial_state)
    for mode in (True, False, True):
        network.train(mode)
        for name, parameter in network.named_parameters():
            assert parameter.requires_grad == (parameter not in frozen), name
    for module in frozen_modules:
        assert not any(m.training for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(m.training for m in network.layer4.modules()) == (frozen_stages < 4)


@pytest.mark.parametrize('frozen_stages', [1, 2, 4])
@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('stage_with_state', [(True,) * 4, (True, False, True, True), (True, False, False, False)])
def test_frozen_stages_need_no_graph(frozen_stages, with_cp, stage_with_state):
    network = with_readers(
        build(frozen_stages=frozen_stages, with_cp=with_cp, stage_with_state=stage_with_state)
    ).train()
    with_graph = []

    def note(module, args, out):
        if any(getattr(leaf, 'requires_grad', False) for leaf in tree_flatten((args, out))[0]):
            with_graph.append(module)

    for stage in range(1, frozen_stages + 1):
        for block in getattr(network, f'layer{stage}'):
            block.register_forward_hook(note)
        if f'layer{stage}' in network.cells:
            network.cells[f'layer{stage}'].register_forward_hook(note)
    network(images())
    assert not with_graph


def test_initial_state_stays_trainable_behind_frozen_stages_without_state():
    options = dict(frozen_stages=1, stage_with_state=(False, True, True, True), norm_eval=True)
    network = build(**options).train()
    assert network.initial_state.requires_grad
    assert_trainable_get_gradients(network)


@pytest.mark.parametrize('norm_eval', [True, False])
@pytest.mark.parametrize('frozen_stages', [-1, 1])
def test_norm_eval(norm_eval, frozen_stages):
    network = build(norm_eval=norm_eval, frozen_stages=frozen_stages)
    for module in network.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            frozen = frozen_stages == 1 and (module is network.norm1 or module in set(network.layer1.modules()))
            assert module.training == (not norm_eval and not frozen)
        elif isinstance(module, S6LAMapCell):
            assert module.training
    assert not any(m.training for m in network.eval().modules())


def test_train_and_eval_return_self():
    network = build()
    assert network.train() is network and network.train(False) is network and network.eval() is network


def cells_called(network):
    calls = []
    for cell in network.cells.values():
        cell.register_forward_pre_hook(lambda *args: calls.append(1))
    return calls


@pytest.mark.parametrize(
    'options',
    [dict(), dict(depth=50, out_state=True), dict(stage_with_state=(False, True, False, True))],
    ids=str,
)
def test_with_cp_changes_nothing_but_memory(options):
    plain = with_readers(build(**options)).train()
    checkpointed = build(**options, with_cp=True).train()
    checkpointed.load_state_dict(plain.state_dict())
    results = []
    for network in (plain, checkpointed):
        calls = cells_called(network)
        outs = network(images())
        forward_calls = len(calls)
        loss_of(outs).backward()
        gradients = {name: p.grad for name, p in network.named_parameters()}
        results.append((outs, gradients, forward_calls, len(calls)))
    (outs, gradients, forward, total), (cp_outs, cp_gradients, cp_forward, cp_total) = results
    torch.testing.assert_close(cp_outs, outs)
    torch.testing.assert_close(cp_gradients, gradients, rtol=1e-4, atol=1e-6)
    readers = sum(blocks for blocks, carried in zip(plain.stage_blocks, plain.stage_with_state) if carried)
    assert forward == total == cp_forward == readers - (not options.get('out_state', False))
    # The write of the last output, which is returned, has nothing to recompute.
    assert cp_total == 2 * forward - options.get('out_state', False)


def test_with_cp_recomputes_once_and_only_for_a_backward():
    """A stage without state is no exception: its blocks must not be checkpointed inside a checkpoint."""
    network = build(with_cp=True, stage_with_state=(True, False, True, True)).train()
    calls = []
    network.layer2[1].conv1.register_forward_pre_hook(lambda *args: calls.append(1))
    loss_of(network(images())).backward()
    assert len(calls) == 2
    with torch.no_grad():
        network(images())
    assert len(calls) == 3


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('zero_init_residual', [True, False])
def test_zero_init_residual_means_what_it_means_in_mmdet(depth, zero_init_residual):
    def zero_norms(network):
        nn.init.constant_(network.layer4[1].norm2.weight, 5)
        network.init_weights()
        return {
            n for n, p in network.named_parameters() if p.dim() == 1 and '.bn' in n and p.eq(0).all() and 'weight' in n
        }

    options = dict(depth=depth, base_channels=8, zero_init_residual=zero_init_residual)
    expected = zero_norms(ResNet(**options))
    assert len(expected) == (sum(ResNet.arch_settings[depth][1]) if zero_init_residual else 0)
    assert zero_norms(S6LAResNet(**options)) == expected


@pytest.mark.parametrize(
    'init_cfg',
    [None, [dict(type='Normal', std=1, layer='Conv2d'), dict(type='Constant', val=1, layer='BatchNorm2d')]],
)
def test_init_weights_leaves_the_state_parameters_to_s6la(init_cfg):
    torch.manual_seed(0)
    network = S6LAResNet(50, base_channels=8, state_dim=8, init_cfg=init_cfg)
    before = network.conv1.weight.clone()
    network.init_weights()
    assert network.conv1.weight.ne(before).all() and network.initial_state.eq(0).all()
    for module in network.modules():
        if isinstance(module, StateRead):
            assert module.weight.eq(0).all()
        if isinstance(module, S6LAMapCell):
            torch.testing.assert_close(module.A_log.detach(), torch.arange(1.0, 9.0).log())
            dt = nn.functional.softplus(module.dt_bias)
            assert dt.min() >= 0.999e-3 and dt.max() <= 1.001e-1
            assert module.in_proj.weight.abs().max() <= 1 / math.sqrt(module.in_proj.in_channels)


def test_reads_that_start_at_kaiming():
    """As torch's own initialiser has it, after a parent's init_cfg too; and h⁰ stays where it is."""
    torch.manual_seed(0)
    network = S6LAResNet(18, base_channels=32, read_init='kaiming', learned_initial_state=False)
    network.init_weights()
    for name, module in network.named_modules():
        if isinstance(module, StateRead):
            expected = math.sqrt(2 / (module.out_channels * 9))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05), name
    assert not network.initial_state.requires_grad and network.initial_state.eq(0).all()


def test_range_of_the_first_steps():
    torch.manual_seed(0)
    network = S6LAResNet(18, base_channels=32, dt_range=[0.1, 1.0])  # a list, as from a config of JSON or YAML
    network.init_weights()
    steps = torch.cat([nn.functional.softplus(cell.dt_bias) for cell in network.cells.values()])
    assert 0.0999 <= steps.min() < 0.15 and 0.7 < steps.max() <= 1.0001
    with pytest.raises(ValueError, match=r'dt_range=\(1, 0\.1\).*smaller one first'):
        S6LAResNet(18, dt_range=(1, 0.1))


def test_no_state_is_kept_between_calls():
    network = with_readers(build(out_state=True)).eval()
    first = network(images(2))
    attributes = {name: set(vars(module)) for name, module in network.named_modules()}
    network(images(3, size=(64, 32), seed=1))
    network(images(1))
    torch.testing.assert_close(network(images(2)), first, rtol=0, atol=0)
    assert attributes == {name: set(vars(module)) for name, module in network.named_modules()}
    # A tensor with a graph, kept on the module, cannot be copied.
    copied = copy.deepcopy(network)
    torch.testing.assert_close(copied(images(2)), first, rtol=0, atol=0)
    each = [network(images(2)[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(tuple(torch.cat(outs) for outs in zip(*each)), first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('train', [True, False])
def test_channels_last(depth, train):
    network = with_readers(build(depth, out_state=True)).train(train)
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)
    outs, others = network(images()), other(images().contiguous(memory_format=torch.channels_last))
    for actual, expected in zip(others, outs):  # another order of summation, amplified by batch statistics of 12
        assert (actual - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize('input_norm', ['rms', None])
@pytest.mark.parametrize('with_cp', [False, True])
def test_bf16_autocast(input_norm, with_cp):
    network = with_readers(build(18, out_state=True, input_norm=input_norm, with_cp=with_cp)).train()
    expected = network(images())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        outs = network(images())
    assert outs[0].dtype == torch.bfloat16 and outs[-1].dtype == torch.float32
    for actual, e in zip(outs, expected):
        assert 0 < (actual.float() - e).norm() < 0.1 * e.norm()
    loss_of(outs).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize('depth', [18, 50])
def test_bf16_autocast_in_evaluation(depth):
    """Without the statistics of a batch, which amplify rounding, within 2 % of float32."""
    network = with_readers(build(depth, out_state=True)).eval()
    with torch.no_grad():
        expected = network(images())
        with torch.autocast('cpu', dtype=torch.bfloat16):
            outs = network(images())
    for actual, e in zip(outs, expected):
        assert 0 < (actual.float() - e).norm() < 0.02 * e.norm()


@pytest.mark.parametrize('dtype', [torch.float64, HALF_ON_CPU, torch.bfloat16])
def test_cast_network(dtype):
    """``model.half()`` for inference, ``model.double()`` for checks."""
    network = with_readers(build(18, out_state=True)).eval()
    with torch.no_grad():
        expected = network(images())
        outs = network.to(dtype)(images().to(dtype))
    for actual, e in zip(outs, expected):
        assert actual.dtype == dtype
        assert (actual.double() - e).norm() < 0.1 * e.norm()


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('with_grad', [False, True])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_empty_batch(depth, with_grad, memory_format):
    network = build(depth, out_state=True).eval().to(memory_format=memory_format)
    with torch.set_grad_enabled(with_grad):
        outs = network(torch.zeros(0, 3, 32, 32).to(memory_format=memory_format))
    assert [out.shape[0] for out in outs] == [0] * 5


@pytest.mark.parametrize('state_dim', [1, 7])
def test_small_state_with_strided_1x1_readers(state_dim, tmp_path):
    """In a process of its own: torch 2.13 corrupts the heap where such a reader is a strided convolution."""
    script = (
        'import torch; from s6la_mm.backbones import S6LAResNet\n'
        f"network = S6LAResNet(50, style='caffe', base_channels=8, state_dim={state_dim}).eval()\n"
        'for _ in range(3): sum(out.square().mean() for out in network(torch.rand(2, 3, 32, 96))).backward()'
    )
    process = Forked('-c', script, log=tmp_path / 'log')
    assert process.wait() == 0, process.output[-500:]
