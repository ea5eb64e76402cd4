"""The op as PyTorch sees it: opcheck, gradients of gradients, fake tensors, torch.compile, autocast."""

import itertools
import warnings

import pytest
import torch
from op_cases import (
    CHANNEL,
    MEMORY,
    NAMES,
    OP_DEVICES,
    VIEWS,
    case,
    channels_last,
    random_like,
    reference_gradients,
    reference_scan,
    scan,
    views,
)
from op_inputs import LAYOUTS, sample_inputs
from releases import HALF_ON_CPU, since
from torch._dynamo.exc import BackendCompilerFailed
from torch._subclasses.fake_tensor import FakeTensorMode

from s6la_mm.backbones import S6LAResNet
from s6la_mm.ops import DISCRETIZATIONS, selective_scan, selective_update

pytestmark = pytest.mark.parametrize('device', OP_DEVICES)


def forward_arguments(inputs, dt_softplus=False, zoh=False, return_states=False, norm_eps=None):
    return (*(inputs.get(name) for name in NAMES), dt_softplus, zoh, return_states, norm_eps)


@pytest.mark.parametrize('memory', MEMORY)
@pytest.mark.parametrize(
    ('return_states', 'with_bias', 'requires_grad'),
    [(False, True, True), (True, False, True), (True, True, False)],
)
@since(2, 4, 'torch.library.opcheck')
def test_opcheck(device, memory, return_states, with_bias, requires_grad):
    inputs = case(memory, depth=3, device=device, size=(3, 5), channels=6, state_dim=4)
    if not with_bias:
        inputs.pop('dt_bias')
    inputs = {name: t.requires_grad_(requires_grad) for name, t in inputs.items()}
    arguments = forward_arguments(inputs, True, with_bias, return_states)
    torch.library.opcheck(torch.ops.s6la_mm.selective_scan.default, arguments)
    with torch.no_grad():
        out = scan(inputs, True, with_bias, return_states)
    grad = torch.empty_like(out).copy_(random_like(out)).requires_grad_(requires_grad)
    mask = [True, False, True, True, True, with_bias]
    torch.library.opcheck(torch.ops.s6la_mm.selective_scan_backward.default, (grad, *arguments, mask))


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('discretization', DISCRETIZATIONS)
@pytest.mark.parametrize(('depth', 'dt_softplus'), [(1, False), (3, True)])
def test_gradients_and_their_gradients(device, layout, dt_softplus, discretization, depth):
    inputs = sample_inputs(
        layout, depth=depth, dtype=torch.float64, device=device, size=(2,), channels=2, state_dim=3, requires_grad=True
    )

    def run(return_states):
        return lambda *tensors: torch.ops.s6la_mm.selective_scan(
            *tensors, dt_softplus, discretization == 'zoh', return_states, None
        )

    tensors = tuple(inputs[name] for name in NAMES)
    for return_states in (False, True):
        assert torch.autograd.gradcheck(run(return_states), tensors)
    assert torch.autograd.gradgradcheck(run(True), tensors)


@pytest.mark.smoke
@pytest.mark.parametrize('layout', LAYOUTS)
def test_gradients_through_the_public_functions(device, layout):
    """In channels_last memory and without a bias, and of the update, which is the op on one step."""
    inputs = sample_inputs(layout, dtype=torch.float64, device=device, size=(2, 2), channels=2, state_dim=3)
    if layout == 'map':
        inputs = {name: channels_last(t, 1) if t.dim() == 4 else t for name, t in inputs.items()}
    bias = inputs.pop('dt_bias')
    tensors = tuple(t.requires_grad_() for t in inputs.values())
    for options in (dict(dt_softplus=True), dict(discretization='zoh', dt_bias=bias)):

        def update(*tensors, options=options):
            return selective_update(**dict(zip(inputs, tensors)), **options)

        assert torch.autograd.gradcheck(update, tensors)
        assert torch.autograd.gradgradcheck(update, tensors)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_only_what_needs_a_gradient_gets_one(device, layout):
    inputs = sample_inputs(layout, depth=2, device=device)
    for needed in NAMES:
        leaves = {name: t.clone().requires_grad_(name == needed) for name, t in inputs.items()}
        selective_scan(**leaves, dt_softplus=True).sum().backward()
        assert [name for name, t in leaves.items() if t.grad is not None] == [needed]
        ones = torch.ones_like(inputs['h0'])
        expected = reference_gradients(ones, inputs, dt_softplus=True)[needed]
        torch.testing.assert_close(leaves[needed].grad.double(), expected, rtol=1e-4, atol=1e-4)
    assert not selective_scan(**inputs).requires_grad


def layouts_of(inputs, grad):
    """Argument sets whose strides a fake kernel must predict: dense in both formats, mixed, and not dense."""
    yield 'dense', inputs, grad
    for name, view in itertools.product(CHANNEL, VIEWS):
        yield f'{name} {view}', inputs | {name: dict(views(inputs[name], CHANNEL[name]))[view]}, grad
    for view in VIEWS:
        yield f'grad {view}', inputs, dict(views(grad, 1))[view]


@pytest.mark.parametrize('memory', MEMORY)
@pytest.mark.parametrize(
    ('dtype', 'size'),
    [(torch.bfloat16, (4, 6)), (torch.float32, (1, 1)), (torch.float32, ()), (torch.float32, (2, 4, 6))],
)
def test_fake_results_look_like_the_real_ones(device, memory, dtype, size):
    if memory == 'token' and size != (4, 6):
        pytest.skip('tokens have no space')
    inputs = case(memory, depth=2, device=device, dtype=dtype, size=size, channels=6, state_dim=4)
    inputs['h0'] = inputs['h0'].float()
    grad = random_like(inputs['h0'])
    for message, arguments, incoming in layouts_of(inputs, grad):
        real, fake = [], []
        for results, convert in ((real, lambda t: t), (fake, FakeTensorMode().from_tensor)):
            args = [None if t is None else convert(t) for t in forward_arguments(arguments)[:6]]
            incoming_ = convert(incoming)
            for return_states in (False, True):
                results.append(torch.ops.s6la_mm.selective_scan(*args, True, False, return_states, None))
            for mask in ([True] * 6, [False, True, False, True, False, True]):
                results += torch.ops.s6la_mm.selective_scan_backward(incoming_, *args, True, False, False, None, mask)
        for index, (a, b) in enumerate(zip(real, fake)):
            described = f'{message}, result {index}'
            assert a.shape == b.shape and a.dtype == b.dtype and a.device == b.device, described
            strides = [[s for s, n in zip(t.stride(), t.shape) if n > 1] for t in (a, b)]
            assert strides[0] == strides[1], f'{described}: {strides[0]} is real'


def recording_backend(graphs):
    """A torch.compile backend that keeps the graphs and runs them through AOTAutograd."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def keep(graph, _):
        graphs.append([node.target for node in graph.graph.nodes])
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=keep, bw_compiler=keep)


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures('fresh_dynamo')
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dynamic', [False, True])
def test_compiled_functions_keep_the_op(device, layout, dynamic):
    graphs = []

    def step(h, x, dt, A, B, dt_bias, xs, dts, Bs):
        h = selective_update(h, x, dt, A, B, dt_bias=dt_bias, dt_softplus=True)
        return selective_scan(xs, dts, A, Bs, h, dt_bias=dt_bias, dt_softplus=True, return_states=True)

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=recording_backend(graphs))
    for size in ((5, 3), (7, 4)) if dynamic else ((5, 3),):
        batch = size[0]
        one = sample_inputs(layout, batch=batch, size=size, device=device)
        more = sample_inputs(layout, batch=batch, size=size, depth=4, device=device, seed=1)
        results = []
        for function in (step, compiled):
            leaves = [t.clone().requires_grad_() for t in (*one.values(), more['x'], more['dt'], more['B'])]
            out = function(*leaves)
            out.backward(random_like(out))
            results.append([out, *(t.grad for t in leaves)])
        torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)
    assert len(graphs) == 2, f'forward and backward once each, got {len(graphs)} graphs: something was recompiled'
    for graph, name in zip(graphs, ('selective_scan', 'selective_scan_backward')):
        targets = [str(target) for target in graph]
        assert targets.count(f's6la_mm.{name}.default') == 2, targets


@pytest.mark.usefixtures('fresh_dynamo')
def test_inductor(device):
    inductor = pytest.importorskip('torch._inductor.exc')
    InductorError = getattr(inductor, 'InductorError', BackendCompilerFailed)  # the latter before torch 2.7

    def step(h, x, dt, A, B, dt_bias):
        # Work around the op that inductor fuses, and whose strides it may choose.
        return selective_update(h * 2, x.relu(), dt, -A.exp(), B, dt_bias=dt_bias, dt_softplus=True).sin()

    inputs = sample_inputs('map', device=device)
    compiled = torch.compile(step, fullgraph=True)
    results = []
    for function in (step, compiled):
        leaves = {name: t.clone().requires_grad_() for name, t in inputs.items()}
        try:
            out = function(**leaves)
        except InductorError as error:
            pytest.skip(f'inductor has no working compiler here: {str(error)[:200]}')
        out.sum().backward()
        results.append([out, *(t.grad for t in leaves.values())])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures('fresh_dynamo')
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_compiled_backbone_has_no_graph_break(device, memory_format):
    graphs = []
    torch.manual_seed(0)
    model = S6LAResNet(depth=18, base_channels=8, state_dim=8, norm_eval=False).to(device, memory_format=memory_format)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if '.read.' in name:
                parameter.normal_(std=0.1)
    compiled = torch.compile(model, fullgraph=True, backend=recording_backend(graphs))
    images = torch.rand(2, 3, 65, 97, device=device).to(memory_format=memory_format)
    results = []
    for function in (model, compiled):
        model.zero_grad()
        outs = function(images)
        sum((out * random_like(out)).sum() for out in outs).backward()
        results.append([*outs, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-3)
    cells = 7  # 8 blocks, of which the last one does not write
    assert [str(t) for t in graphs[0]].count('s6la_mm.selective_scan.default') == cells
    assert [str(t) for t in graphs[1]].count('s6la_mm.selective_scan_backward.default') == cells


@pytest.mark.usefixtures('fresh_dynamo')
def test_compiled_cell_in_dynamic_shapes(device):
    from s6la_mm.layers import S6LAMapCell

    graphs = []
    cell = S6LAMapCell(in_channels=8, state_dim=4).to(device)
    compiled = torch.compile(cell, fullgraph=True, dynamic=True, backend=recording_backend(graphs))
    for batch, height, width in ((2, 7, 9), (3, 8, 5), (2, 33, 4)):
        x = torch.rand(batch, 8, height, width, device=device)
        h = torch.rand(1, 4, 1, 1, device=device).expand(batch, 4, height, width)
        torch.testing.assert_close(compiled(x, h), cell(x, h), rtol=1e-5, atol=1e-6)
    assert len(graphs) <= 2


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', [torch.bfloat16, HALF_ON_CPU])
def test_autocast_keeps_the_dtype_of_the_state(device, layout, dtype):
    """What convolutions hand over under autocast is half; the state and the parameters stay float32."""
    inputs = sample_inputs(layout, depth=3, device=device, dtype=dtype)
    inputs['h0'] = inputs['h0'].float()
    with torch.autocast(device, dtype):
        actual = selective_scan(**inputs, dt_softplus=True, return_states=True)
        direct = scan(inputs, dt_softplus=True, return_states=True)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(direct, actual, rtol=0, atol=0)
    expected = reference_scan(inputs, dt_softplus=True, return_states=True)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_autocast_does_not_round_float32_inputs_of_the_arithmetic(device, layout):
    """A and dt_bias have no half type to go through: a rounded A would be off by 0.4 percent."""
    inputs = sample_inputs(layout, depth=3, device=device)
    with torch.autocast(device, torch.bfloat16):
        actual = selective_scan(**inputs, dt_softplus=True)
    torch.testing.assert_close(actual, selective_scan(**inputs, dt_softplus=True), rtol=1e-6, atol=1e-6)


def test_autocast_of_the_cell_trains(device):
    from s6la_mm.layers import S6LAMapCell

    cell = S6LAMapCell(in_channels=8, state_dim=4).to(device)
    x, h = torch.rand(2, 8, 5, 7, device=device), torch.rand(2, 4, 5, 7, device=device)
    with torch.autocast(device, torch.bfloat16):
        out = cell(x, h)
        loss = out.square().sum()
    loss.backward()
    assert out.dtype == h.dtype
    exact = cell(x, h)
    torch.testing.assert_close(out, exact, rtol=0.05, atol=0.05)
    for name, parameter in cell.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_function_transforms(device):
    """vmap is right; grad is right or says that it is not there."""
    inputs = sample_inputs('map', depth=1, device=device)
    states = torch.stack([inputs['h0'], 2 * inputs['h0']])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the loop that vmap runs
        batched = torch.func.vmap(lambda h0: selective_scan(**inputs | dict(h0=h0)))(states)
    torch.testing.assert_close(batched, torch.stack([selective_scan(**inputs | dict(h0=h0)) for h0 in states]))
    try:
        grad = torch.func.grad(lambda A: selective_scan(**inputs | dict(A=A)).square().sum())(inputs['A'])
    except RuntimeError as error:
        assert 'functorch' in str(error)
        return
    expected = reference_gradients(2 * reference_scan(inputs), inputs)['A']
    torch.testing.assert_close(grad.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('return_states', [False, True])
@pytest.mark.parametrize('depth', [0, 1, 3])
@pytest.mark.parametrize('needed', [('x', 'h0'), ('A',), NAMES], ids=str)
def test_create_graph(device, return_states, depth, needed):
    """Gradients to be differentiated again come from the reference; they are the same, for no steps too."""
    inputs = sample_inputs('map', depth=depth, device=device)
    results = []
    for create_graph in (False, True):
        leaves = {name: t.clone().requires_grad_(name in needed) for name, t in inputs.items()}
        out = selective_scan(**leaves, dt_softplus=True, return_states=return_states)
        wanted = [leaves[name] for name in needed]
        grads = torch.autograd.grad(
            out, wanted, random_like(out), create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
        results.append([g.detach() for g in grads])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_create_graph_of_a_chain(device):
    """The second step's gradients are its own, though its state has come from the same A and dt_bias."""
    inputs = {name: t.double() for name, t in sample_inputs('map', depth=1, device=device).items()}

    def derivatives(step) -> list:
        leaves = {name: t.clone().requires_grad_() for name, t in inputs.items()}
        state = leaves['h0']
        for _ in range(2):
            state = step(leaves | dict(h0=state))
        first = torch.autograd.grad(state.square().sum(), list(leaves.values()), create_graph=True)
        second = torch.autograd.grad(sum(grad.square().sum() for grad in first), list(leaves.values()))
        return [*(grad.detach() for grad in first), *second]

    actual = derivatives(lambda given: selective_scan(**given, dt_softplus=True))
    torch.testing.assert_close(actual, derivatives(lambda given: reference_scan(given, dt_softplus=True)))
