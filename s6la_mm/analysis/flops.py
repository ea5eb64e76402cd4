"""Parameters and FLOPs of a model by part, with the share of S6LA on its own row."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.config import ConfigDict
from torch import nn

from ..compat import flop_counter_mode, unfused_attention
from ..layers import STATE_LAYERS


def _run_model(model: nn.Module, height: int, width: int, channels: int) -> None:
    """One forward pass of one image; two-stage detectors go through their heads with random proposals."""
    inputs = torch.rand(1, channels, height, width)
    data_samples, mode = None, 'tensor'
    if any(hasattr(model, name) for name in ('rpn_head', 'encoder')):
        data_samples = [_without_objects((height, width))]
    proposals = getattr(getattr(model, 'rpn_head', None), 'init_proposal_bboxes', None)
    if proposals is not None:  # those that Sparse R-CNN learns have no size before their initialisation
        nn.init.constant_(proposals.weight, 0.5)
    if hasattr(model, 'encode_decode'):  # a segmentor: heads of detectors in it want what it hands over in predictions
        model.test_cfg, mode = ConfigDict(model.test_cfg, mode='whole'), 'predict'
    with torch.no_grad():
        model(inputs, data_samples, mode=mode)


def _without_objects(shape: tuple[int, int]) -> Any:
    """Tells a detector with two stages or a transformer where the image ends; Sparse R-CNN matches objects, too."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    sample = DetDataSample(
        metainfo=dict(img_shape=shape, ori_shape=shape, batch_input_shape=shape, scale_factor=(1.0, 1.0))
    )
    sample.gt_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    return sample


def count_flops(model: nn.Module, height: int, width: int, channels: int = 3) -> list[tuple[str, int, int]]:
    """Counts by part of the model.

    Args:
        model (nn.Module): A model of OpenMMLab.
        height (int): Of an image.
        width (int): Of an image.
        channels (int): Of an image. Defaults to 3.

    Returns:
        list[tuple[str, int, int]]: Rows of name, parameters and FLOPs. A multiply-add counts once, as in OpenMMLab's
            tables; convolutions, matrix products and the compiled state update count, other element-wise operations
            do not.
    """
    counter = flop_counter_mode(model)
    with counter, unfused_attention():  # the fused attention of the CPU is not counted
        _run_model(model, height, width, channels)
    # FlopCounterMode counts multiply and add, and names modules by their path below the class of the root.
    flops = {
        path.partition('.')[2]: sum(ops.values()) // 2 for path, ops in counter.get_flop_counts().items() if '.' in path
    }
    total = sum(counter.get_flop_counts()['Global'].values()) // 2
    parameters = dict(model.named_parameters())

    def flops_of(name: str) -> int:
        if name in flops:
            return flops[name]
        # A part whose own forward is not called (a RoI head) is the sum of its children.
        return sum(flops_of(f'{name}.{child}') for child, _ in model.get_submodule(name).named_children())

    def row(label: str, modules: list[str], single_parameters: list[str]) -> tuple[str, int, int]:
        prefixes = tuple(f'{name}.' for name in modules)
        selected = [p for key, p in parameters.items() if key in single_parameters or key.startswith(prefixes)]
        return label, sum(p.numel() for p in selected), sum(flops_of(name) for name in modules)

    rows = []
    for name, part in model.named_children():
        rows.append(row(name, [name], []))
        state = [f'{name}.{path}' for path, m in part.named_modules() if isinstance(m, STATE_LAYERS)]
        if state:
            rows.append(row('  of it S6LA', state, [f'{name}.initial_state']))
    rows = [r for r in rows if r[1] or r[2]]
    return [*rows, ('whole model', sum(p.numel() for p in parameters.values()), total)]
