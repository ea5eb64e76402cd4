"""The facts of S6LAConvNeXt: mmpretrain's ConvNeXt, V1 and V2."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ...checkpoint.layouts import Layout
from ...checkpoint.surgery import fit_ones
from .family import Family, Size
from .networks import load, openmmlab

_LAYOUTS = (
    Layout(
        'convnext',  # the authors of V1 and V2
        ('downsample_layers.0.0.weight', 'stages.0.0.dwconv.weight'),
        (
            (r'(stages\.\d+\.\d+)\.dwconv\.(.+)', r'\1.depthwise_conv.\2'),
            (r'(stages\.\d+\.\d+)\.pwconv([12])\.(.+)', r'\1.pointwise_conv\2.\3'),
            (r'norm\.(.+)', r'norm3.\1'),
        ),
        (),
        ('fit_ones',),
    ),
    Layout(
        'timm',
        ('stem.0.weight', 'stages.0.blocks.0.conv_dw.weight'),
        (
            (r'stem\.(.+)', r'downsample_layers.0.\1'),
            (r'stages\.(\d+)\.downsample\.(.+)', r'downsample_layers.\1.\2'),
            (r'stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.(.+)', r'stages.\1.\2.depthwise_conv.\3'),
            (r'stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc([12])\.(.+)', r'stages.\1.\2.pointwise_conv\3.\4'),
            (r'stages\.(\d+)\.blocks\.(\d+)\.mlp\.grn\.weight', r'stages.\1.\2.grn.gamma'),
            (r'stages\.(\d+)\.blocks\.(\d+)\.mlp\.grn\.bias', r'stages.\1.\2.grn.beta'),
            (r'stages\.(\d+)\.blocks\.(\d+)\.(norm\..+|gamma)', r'stages.\1.\2.\3'),
            (r'head\.norm\.(.+)', r'norm3.\1'),
            (r'head\.fc\.(.+)', r'head.\1'),
        ),
        (),
        ('fit_ones',),
    ),
    Layout(
        'torchvision',
        ('features.0.0.weight', 'features.1.0.layer_scale'),
        (
            (r'features\.0\.(.+)', r'downsample_layers.0.\1'),
            *(
                rule
                for i in range(4)
                for rule in (
                    (rf'features\.{2 * i}\.(.+)', rf'downsample_layers.{i}.\1'),
                    (rf'features\.{2 * i + 1}\.(\d+)\.block\.0\.(.+)', rf'stages.{i}.\1.depthwise_conv.\2'),
                    (rf'features\.{2 * i + 1}\.(\d+)\.block\.2\.(.+)', rf'stages.{i}.\1.norm.\2'),
                    (rf'features\.{2 * i + 1}\.(\d+)\.block\.3\.(.+)', rf'stages.{i}.\1.pointwise_conv1.\2'),
                    (rf'features\.{2 * i + 1}\.(\d+)\.block\.5\.(.+)', rf'stages.{i}.\1.pointwise_conv2.\2'),
                    (rf'features\.{2 * i + 1}\.(\d+)\.layer_scale', rf'stages.{i}.\1.gamma'),
                )
            ),
            (r'classifier\.0\.(.+)', r'norm3.\1'),
            (r'classifier\.2\.(.+)', r'head.\1'),
        ),
        (),
        ('fit_ones',),
    ),
    Layout(
        'mmpretrain',
        ('downsample_layers.0.0.weight', 'stages.0.0.depthwise_conv.weight'),
        transforms=('fit_ones',),
    ),
)


def _with_head(backbone: nn.Module, maps: Callable[[Tensor], Tensor], norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """The last output as the backbone has it, given how to compute the last map and the norm of the class head."""
    if backbone.gap_before_final_norm:
        return lambda images: norm(maps(images).mean((2, 3), keepdim=True)).flatten(1)
    return lambda images: norm(maps(images))


def _timm(backbone: nn.Module, source: dict[str, Tensor], size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    from timm.models.convnext import ConvNeXt, checkpoint_filter_fn

    block = backbone.stages[0][0]
    network = ConvNeXt(
        in_chans=backbone.downsample_layers[0][0].in_channels,
        depths=tuple(backbone.depths),
        dims=tuple(backbone.channels),
        patch_size=backbone.downsample_layers[0][0].kernel_size[0],
        ls_init_value=None if block.gamma is None else 1.0,
        use_grn=block.grn is not None,
    )
    source = {k: v.flatten(1) if '.mlp.fc' in k and v.ndim == 4 else v for k, v in source.items()}
    load(network, checkpoint_filter_fn(source, network))  # which knows the authors' names, too
    network.eval()
    return _with_head(backbone, network.forward_features, network.head.norm)


def _torchvision(backbone: nn.Module, source: dict[str, Tensor], size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    widths = [*backbone.channels, None]
    network = ConvNeXt([CNBlockConfig(a, b, depth) for a, b, depth in zip(widths, widths[1:], backbone.depths)])
    load(network, source, may_lack=('classifier.2.',))
    network.eval()
    return _with_head(backbone, network.features, network.classifier[0])


CONVNEXT = Family(
    name='S6LAConvNeXt',
    module='s6la_convnext',
    plain_name='mmpretrain.ConvNeXt',
    layouts=_LAYOUTS,
    transforms=dict(fit_ones=fit_ones),
    networks={
        'convnext': ('timm', _timm),
        'timm': ('timm', _timm),
        'torchvision': ('torchvision', _torchvision),
        'mmpretrain': ('mmpretrain', openmmlab),
    },
    sizes=(
        *(
            Size(f'convnext-{arch}', f'ConvNeXt-{arch}', dict(arch=arch), channels)
            for arch, channels in (('tiny', 768), ('small', 768), ('base', 1024), ('large', 1536))
        ),
        *(
            Size(
                f'convnext-v2-{arch}',
                f'ConvNeXt V2-{arch}',
                dict(arch=arch, use_grn=True, layer_scale_init_value=0.0),
                channels,
            )
            for arch, channels in (('atto', 320), ('tiny', 768), ('base', 1024))
        ),
    ),
    small=dict(
        arch=dict(depths=[2, 2, 2, 2], channels=[8, 16, 24, 32]),
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
        layer_scale_init_value=1.0,
    ),
    measured_with=dict(drop_path_rate=0.0),
)
