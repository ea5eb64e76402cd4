"""Running the network that a checkpoint is from beside the one it was converted to.

The networks are built out of their own packages (torchvision, timm, mmdet, mmpretrain), which have to be installed.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint.layouts import family_of
from ..checkpoint.matching import Match, match_backbone
from ..checkpoint.reading import Weights

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
    size = getattr(network, 'img_size', _IMAGE_SIZE)
    size = (size, size) if isinstance(size, int) else tuple(size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.rand(2, 3, *size) * 2 - 1
    if 'initial_state' in source:
        other = rebuild(source['initial_state'].shape[0]).float().eval()
        other.load_state_dict(match_backbone(weights, other, prefix=match.prefix).tensors, strict=False)
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


def _last_output(network: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda images: network(images)[-1]


def _plain_network(
    layout: str, backbone: nn.Module, source: dict[str, Tensor], size: tuple[int, int]
) -> Callable[[Tensor], Tensor]:
    package, build = _BUILDERS.get((layout, family_of(backbone)), (None, None))
    if package is None:
        raise ValueError(f'--verify knows no package that has the network of layout {layout!r}')
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f'--verify needs {package}: pip install {package} ({error})') from None
    return build(backbone, source, size)


def _load(network: nn.Module, source: dict[str, Tensor], may_lack: tuple[str, ...] = ('fc.', 'head')) -> None:
    """Loads all that the network needs for its features."""
    own = network.state_dict()
    fits = {k: v for k, v in source.items() if k in own and own[k].shape == v.shape}
    buffers = ('num_batches_tracked', 'relative_position_index', 'attn_mask', 'read.weight')
    missing = [k for k in own if k not in fits and not k.startswith(may_lack) and not k.endswith(buffers)]
    if missing:
        raise ValueError(f"--verify's {type(network).__name__} is not the source's network: {missing[:4]} are missing")
    network.load_state_dict(fits, strict=False)


def _torchvision_resnet(backbone: nn.Module, source: dict[str, Tensor], size: tuple[int, int]) -> Callable:
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    block = Bottleneck if 'layer1.0.conv3.weight' in source else BasicBlock
    network = ResNet(block, list(backbone.stage_blocks), groups=_groups(source), width_per_group=_width(source))
    _load(network, source)
    return nn.Sequential(*list(network.children())[:-2]).eval()


def _timm_resnet(backbone: nn.Module, source: dict[str, Tensor], size: tuple[int, int]) -> Callable:
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    network = ResNet(
        Bottleneck if 'layer1.0.conv3.weight' in source else BasicBlock,
        list(backbone.stage_blocks),
        stem_type='deep',
        stem_width=source['conv1.0.weight'].shape[0],
        avg_down='layer2.0.downsample.1.weight' in source and source['layer2.0.downsample.1.weight'].ndim == 4,
    )
    _load(network, source)
    return network.eval().forward_features


def _groups(source: dict[str, Tensor]) -> int:
    """Groups of a ResNeXt's convolutions, from the input channels that each of its filters sees."""
    weight = source.get('layer1.0.conv2.weight')
    return weight.shape[0] // weight.shape[1]


def _width(source: dict[str, Tensor]) -> int:
    """torchvision's width_per_group."""
    groups = _groups(source)
    return 64 if groups == 1 else source['layer1.0.conv2.weight'].shape[0] // groups


def _vit_options(backbone: nn.Module, size: tuple[int, int]) -> dict:
    patch = backbone.patch_embed.projection.kernel_size[0]
    if backbone.out_type != 'cls_token' or size[0] != size[1]:
        raise ValueError(
            "--verify compares class tokens at square sizes: use out_type='cls_token' and a square img_size"
        )
    return dict(patch_size=patch, depth=backbone.num_layers, heads=backbone.arch_settings['num_heads'])


def _timm_vit(backbone: nn.Module, source: dict[str, Tensor], size: tuple[int, int]) -> Callable:
    from timm.models.vision_transformer import VisionTransformer

    if 'dist_token' in source:
        raise ValueError('--verify has nothing to compare with: S6LAViT has no distillation token')
    options = _vit_options(backbone, size)
    network = VisionTransformer(
        img_size=size,
        patch_size=options['patch_size'],
        depth=options['depth'],
        num_heads=options['heads'],
        embed_dim=backbone.embed_dims,
        mlp_ratio=backbone.arch_settings['feedforward_channels'] / backbone.embed_dims,
        num_classes=0,
    )
    _load(network, source)
    network.eval()
    return lambda images: network.forward_features(images)[:, 0]


def _torchvision_vit(backbone: nn.Module, source: dict[str, Tensor], size: tuple[int, int]) -> Callable:
    from torchvision.models import VisionTransformer

    options = _vit_options(backbone, size)
    network = VisionTransformer(
        size[0],
        options['patch_size'],
        options['depth'],
        options['heads'],
        backbone.embed_dims,
        backbone.arch_settings['feedforward_channels'],
    )
    network.heads = nn.Identity()
    _load(network, source)
    return network.eval()


def _window(source: dict[str, Tensor]) -> int:
    """Swin's window size, from the (2 w − 1)² rows of a table of relative positions."""
    table = next(v for k, v in source.items() if k.endswith('relative_position_bias_table'))
    return (isqrt(table.shape[0]) + 1) // 2


def _timm_swin(backbone: nn.Module, source: dict[str, Tensor], size: tuple[int, int]) -> Callable:
    from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn

    network = SwinTransformer(
        img_size=size,
        window_size=_window(source),
        embed_dim=backbone.embed_dims,
        depths=backbone.depths,
        num_heads=backbone.num_heads,
        num_classes=0,
    )
    if 'layers.0.downsample.reduction.weight' in source:  # the authors' names
        source = checkpoint_filter_fn(source, network)
    _load(network, source)
    network.eval()
    return lambda images: network.forward_features(images).permute(0, 3, 1, 2)


def _torchvision_swin(backbone: nn.Module, source: dict[str, Tensor], size: tuple[int, int]) -> Callable:
    from torchvision.models import SwinTransformer

    window = [_window(source)] * 2
    network = SwinTransformer([4, 4], backbone.embed_dims, list(backbone.depths), list(backbone.num_heads), window)
    _load(network, source)
    network.eval()
    return lambda images: network.norm(network.features(images)).permute(0, 3, 1, 2)


def _timm_pvt(backbone: nn.Module, source: dict[str, Tensor], size: tuple[int, int]) -> Callable:
    from timm.models.pvt_v2 import PyramidVisionTransformerV2, checkpoint_filter_fn

    network = PyramidVisionTransformerV2(
        depths=backbone.num_layers,
        embed_dims=[backbone.embed_dims * heads for heads in backbone.num_heads],
        num_heads=backbone.num_heads,
        sr_ratios=backbone.sr_ratios,
        mlp_ratios=[
            blocks[0].ffn.layers[0].out_channels / blocks[0].ffn.embed_dims for _, blocks, _ in backbone.layers
        ],
        num_classes=0,
    )
    _load(network, checkpoint_filter_fn(source, network))  # which knows the authors' names, too
    # The authors' norms behind the patch embeddings and the reductions have 1e-5, mmdet's 1e-6: no matter of weights.
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = backbone.layers[0][2].eps
    return network.eval().forward_features


def _openmmlab(backbone: nn.Module, source: dict[str, Tensor], size: tuple[int, int]) -> Callable:
    """The class that the backbone extends: its forward pass on the blocks, which are plain ones with a read beside."""
    base = next(c for c in type(backbone).__mro__ if c.__module__.startswith(('mmpretrain.', 'mmdet.')))
    network = copy.deepcopy(backbone).float()
    _load(network, source, may_lack=('initial_state', 'cells.', 'carries.', 'norm', 'ln2.'))
    network.eval()
    return lambda images: base.forward(network, images)[-1]


_BUILDERS = {
    ('resnet', 'S6LAResNet'): ('torchvision', _torchvision_resnet),
    ('timm-deep-stem', 'S6LAResNet'): ('timm', _timm_resnet),
    ('timm', 'S6LAViT'): ('timm', _timm_vit),
    ('torchvision', 'S6LAViT'): ('torchvision', _torchvision_vit),
    ('swin', 'S6LASwin'): ('timm', _timm_swin),
    ('timm', 'S6LASwin'): ('timm', _timm_swin),
    ('torchvision', 'S6LASwin'): ('torchvision', _torchvision_swin),
    ('pvt', 'S6LAPVTv2'): ('timm', _timm_pvt),
    ('timm', 'S6LAPVTv2'): ('timm', _timm_pvt),
    ('mmpretrain', 'S6LAViT'): ('mmpretrain', _openmmlab),
    ('mmpretrain', 'S6LASwin'): ('mmpretrain', _openmmlab),
    ('mmdet', 'S6LAPVTv2'): ('mmdet', _openmmlab),
}
