"""Running the network that a checkpoint is from beside the one it was converted to.

The networks are built out of their own packages (torchvision, timm, mmdet, mmpretrain), which have to be installed:
each family of backbones says how.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint.matching import Match, match_backbone
from ..checkpoint.reading import Weights
from ..checkpoint.surgery import differs_in_channels, input_convolution

_IMAGE_SIZE = 224


@torch.no_grad()
def largest_difference(
    weights: Weights,
    match: Match,
    backbone: nn.Module,
    state: dict[str, Tensor],
    rebuild: Callable[[int], nn.Module],
) -> float:
    """The largest difference between the outputs of both networks on the same random images, in evaluation mode.

    Where a source reads what it aggregates in its first convolutions (RLA-Net), these are compared one by one on random
    maps: the two networks aggregate differently, so that no output can agree.

    Args:
        weights (Weights): The source.
        match (Match): How it was fitted to the backbone.
        backbone (nn.Module): The backbone.
        state (dict[str, Tensor]): Its new weights.
        rebuild (Callable[[int], nn.Module]): Builds the backbone with another state_dim.

    Returns:
        float: max |a − b| / max |b|, where b is the source's output, or the largest such quotient of a convolution.

    Raises:
        ValueError: If there is no network to compare with; the message says why.
    """
    if match.problems:
        raise ValueError(f'--verify needs a source that matches in whole: {match.describe_problems()}')
    source = {k[len(match.prefix) :]: v.float() for k, v in weights.tensors.items() if k.startswith(match.prefix)}
    if any(entry.target.endswith('.read.weight') and entry.source for entry in match.entries):
        if 'initial_state' not in source:
            return _largest_of_convolutions(match, weights, state)
    elif 'initial_state' in source:
        raise ValueError('--verify has nothing to compare with: the reads of the source were left out')
    resized = [
        e.target
        for e in match.entries
        if e.source and e.target.endswith(('pos_embed', 'bias_table')) and weights.tensors[e.source].shape != e.shape
    ]
    if resized:
        raise ValueError(f'--verify needs the image and window size of the source, and {resized[0]} was resized')
    network = copy.deepcopy(backbone).float().eval()
    network.load_state_dict(state)
    channels = _restore_input_channels(network, match, weights)
    size = getattr(network, 'img_size', _IMAGE_SIZE)
    size = (size, size) if isinstance(size, int) else tuple(size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.rand(2, channels, *size) * 2 - 1
    if 'initial_state' in source:
        other = rebuild(source['initial_state'].shape[0]).float().eval()
        found = match_backbone(weights, other, prefix=match.prefix, change_channels=True)
        other.load_state_dict(found.tensors, strict=False)
        run = _last_output(other)
    else:
        run = _plain_network(match.layout, network, source, size)
    expected, actual = run(images), _last_output(network)(images)
    return _relative(actual, expected)


def _relative(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        raise ValueError(f'the outputs have the shapes {tuple(actual.shape)} and {tuple(expected.shape)}')
    return float((actual - expected).abs().max() / expected.abs().max())


def _largest_of_convolutions(match: Match, weights: Weights, state: dict[str, Tensor]) -> float:
    worst = 0.0
    for entry in match.entries:
        if not (entry.target.endswith('.read.weight') and entry.source):
            continue
        joint = weights.tensors[entry.source].float()
        plain, read = (state[entry.target.replace('read', name)].float() for name in ('conv1', 'read'))
        if joint.shape[1] != plain.shape[1] + read.shape[1]:
            raise ValueError('--verify has nothing to compare with: the reads have another number of state channels')
        maps = torch.rand(1, joint.shape[1], 5, 7) - 0.5
        x, h = maps.split([plain.shape[1], read.shape[1]], dim=1)
        worst = max(worst, _relative(F.conv2d(x, plain) + F.conv2d(h, read), F.conv2d(maps, joint)))
    return worst


def _restore_input_channels(network: nn.Module, match: Match, weights: Weights) -> int:
    """Gives a network the first convolution of a plain source, where it was fitted to other images; its channels."""
    name, convolution = input_convolution(network)
    entry = next(e for e in match.entries if e.target == f'{name}.weight')
    given = weights.tensors[entry.source]
    if 'initial_state' not in match.tensors and differs_in_channels(given, convolution):
        convolution.in_channels = given.shape[1]
        convolution.weight = nn.Parameter(given.float())
    return convolution.in_channels


def _last_output(network: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda images: network(images)[-1]


def _plain_network(
    layout: str, backbone: nn.Module, source: dict[str, Tensor], size: tuple[int, int]
) -> Callable[[Tensor], Tensor]:
    package, build = backbone.family.networks.get(layout, (None, None))
    if package is None:
        raise ValueError(f'--verify knows no package that has the network of layout {layout!r}')
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f'--verify needs {package}: pip install {package} ({error})') from None
    return build(backbone, source, size)
