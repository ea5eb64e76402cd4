"""Exported programs hold the formula instead of the op, so that they run where the extension is not."""

import io
import warnings

import pytest
import torch
from op_cases import random_like
from op_inputs import LAYOUTS, sample_inputs
from releases import since
from torch import nn

from s6la_mm.backbones import S6LAResNet
from s6la_mm.compat import TORCH
from s6la_mm.layers import S6LAMapCell
from s6la_mm.ops import selective_scan, selective_update

# What export warns of is its own affair (deprecations of the exporters that are tested here on purpose).
pytestmark = pytest.mark.filterwarnings('ignore')
FUNCTIONS = [(layout, scan) for layout in LAYOUTS for scan in (False, True)]


class Function(nn.Module):
    """A public function as a module, which is what the exporters take."""

    def __init__(self, scan, **options):
        super().__init__()
        self.scan, self.options = scan, options

    def forward(self, h, x, dt, A, B, dt_bias):
        if self.scan:
            return selective_scan(x, dt, A, B, h, dt_bias=dt_bias, return_states=True, **self.options)
        return selective_update(h, x, dt, A, B, dt_bias=dt_bias, **self.options)


def function_case(layout, scan, discretization='euler'):
    inputs = sample_inputs(layout, depth=3 if scan else None)
    return Function(scan, dt_softplus=True, discretization=discretization).eval(), tuple(inputs.values())


def backbone_case():
    torch.manual_seed(0)
    model = S6LAResNet(
        depth=18, base_channels=8, state_dim=8, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1)
    )
    for name, parameter in model.named_parameters():
        if '.read.' in name:
            nn.init.normal_(parameter, std=0.1)  # at its initial zero the state does not reach the outputs
    return model.eval(), (torch.rand(2, 3, 33, 47),)


def operators(program):
    return {str(node.target) for node in program.graph.nodes if node.op == 'call_function'}


EXPORTS = since(2, 7, 'torch.compiler.is_exporting, by which the op stays out of what is exported')


def as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def assert_same(actual, expected, tolerance=1e-5):
    actual, expected = as_tuple(actual), as_tuple(expected)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected):
        torch.testing.assert_close(torch.as_tensor(a), e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ('layout', 'scan', 'discretization'),
    [('map', False, 'euler'), ('map', True, 'zoh'), ('token', False, 'zoh'), ('token', True, 'euler')],
)
@EXPORTS
def test_export_of_the_functions(layout, scan, discretization):
    model, inputs = function_case(layout, scan, discretization)
    program = torch.export.export(model, inputs)
    names = operators(program)
    assert any('aten.exp' in name for name in names) and not any('s6la_mm' in name for name in names), names
    assert_same(program.module()(*inputs), model(*inputs))


@EXPORTS
def test_export_with_dynamic_axes():
    cell = S6LAMapCell(in_channels=6, state_dim=4).eval()
    batch, height = torch.export.Dim('batch'), torch.export.Dim('height')
    dynamic = ({0: batch, 2: height}, {0: batch, 2: height})
    program = torch.export.export(cell, (torch.rand(2, 6, 5, 4), torch.rand(2, 4, 5, 4)), dynamic_shapes=dynamic)
    assert not any('s6la_mm' in name for name in operators(program))
    inputs = torch.rand(3, 6, 9, 4), torch.rand(3, 4, 9, 4)
    assert_same(program.module()(*inputs), cell(*inputs))


@EXPORTS
def test_export_of_the_backbone():
    model, inputs = backbone_case()
    program = torch.export.export(model, inputs)
    assert not any('s6la_mm' in name for name in operators(program))
    assert_same(program.module()(*inputs), model(*inputs))
    # A saved program is what travels to a process without this package.
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    assert_same(torch.export.load(saved).module()(*inputs), model(*inputs))


@EXPORTS
def test_export_leaves_the_op_in_use(monkeypatch):
    """The choice of the formula ends with the export."""
    from op_cases import OP_DEVICES

    if OP_DEVICES[0].marks[0].args[0]:
        pytest.skip(OP_DEVICES[0].marks[0].kwargs['reason'])
    model, inputs = function_case('map', False)
    torch.export.export(model, inputs)
    torch.jit.trace(model, inputs)
    with torch.profiler.profile() as profile:
        model(*inputs)
    assert any(event.key == 's6la_mm::selective_scan' for event in profile.key_averages())


@pytest.mark.parametrize(('layout', 'scan'), FUNCTIONS)
def test_jit_trace_of_the_functions(layout, scan):
    model, inputs = function_case(layout, scan)
    traced = torch.jit.trace(model, inputs)
    assert 's6la_mm::' not in str(traced.inlined_graph)
    assert_same(traced(*inputs), model(*inputs))
    other = tuple(random_like(t, seed=5).abs() for t in inputs)
    assert_same(traced(*other), model(*other))


def test_jit_trace_of_the_backbone():
    model, inputs = backbone_case()
    with torch.no_grad():
        traced = torch.jit.trace(model, inputs)
        assert 's6la_mm::' not in str(traced.inlined_graph)
        assert_same(traced(*inputs), model(*inputs))
        other = (torch.rand(1, 3, 32, 40),)
        assert_same(traced(*other), model(*other))


def onnx_file(model, inputs, path, dynamo, **options):
    """Exports, checks that only standard operators are in it, and returns onnxruntime's outputs."""
    reason = 'ONNX export needs the packages onnx, onnxscript and onnxruntime (requirements/tests.txt)'
    onnx = pytest.importorskip('onnx', reason=reason)
    pytest.importorskip('onnxscript', reason=reason)
    runtime = pytest.importorskip('onnxruntime', reason=reason)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        if TORCH >= (2, 7):  # older ones know the TorchScript exporter only
            options.update(dynamo=dynamo, external_data=False)
        torch.onnx.export(model, inputs, str(path), **options)
    exported = onnx.load(str(path))
    onnx.checker.check_model(exported)
    domains = {node.domain for node in exported.graph.node}
    assert domains <= {'', 'ai.onnx'}, domains
    assert 'Exp' in {node.op_type for function in (exported.graph, *exported.functions) for node in function.node}
    session = runtime.InferenceSession(str(path), providers=['CPUExecutionProvider'])

    def run(*tensors):
        # An input that the exporter found unused is not one of the file's inputs.
        feeds = {spec.name: t.numpy() for spec, t in zip(session.get_inputs(), tensors)}
        return tuple(torch.from_numpy(out) for out in session.run(None, feeds))

    return run


EXPORTERS = pytest.mark.parametrize(
    'dynamo', [pytest.param(True, marks=EXPORTS, id='dynamo'), pytest.param(False, id='torchscript')]
)


@EXPORTERS
@pytest.mark.parametrize(('layout', 'scan'), [('map', False), ('token', True)])
def test_onnx_of_the_functions(layout, scan, dynamo, tmp_path):
    model, inputs = function_case(layout, scan)
    run = onnx_file(model, inputs, tmp_path / 'model.onnx', dynamo)
    assert_same(run(*inputs), model(*inputs))


@EXPORTERS
def test_onnx_of_exact_discretization(dynamo, tmp_path):
    """expm1 is not an ONNX operator; what takes its place must not lose the digits of small steps."""
    model, inputs = function_case('map', False, 'zoh')
    try:
        run = onnx_file(model, inputs, tmp_path / 'model.onnx', dynamo)
    except torch.onnx.errors.UnsupportedOperatorError as error:
        pytest.skip(f'the exporter of torch {torch.__version__} has no expm1: {error}')
    assert_same(run(*inputs), model(*inputs))


@EXPORTERS
def test_onnx_of_the_backbone(dynamo, tmp_path):
    model, inputs = backbone_case()
    run = onnx_file(model, inputs, tmp_path / 'model.onnx', dynamo)
    assert_same(run(*inputs), model(*inputs), 1e-4)
    # And the state reaches the outputs, so that this could fail.
    with torch.no_grad():
        model.cells['layer1'].dt_bias.add_(1)
    assert not torch.allclose(run(*inputs)[-1], model(*inputs)[-1], rtol=1e-4, atol=1e-4)
