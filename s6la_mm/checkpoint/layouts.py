"""How the sources of checkpoints name and shape what the S6LA backbones have, as data.

A layout says how its files are told from others, what its keys are called in the backbone, and what has to be done to
tensors beyond renaming them. The backbones' own names are mmdet's and mmpretrain's. A class head is called ``head.``
in every layout.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields

from torch import Tensor, nn

from .surgery import TRANSFORMS


@dataclass(frozen=True)
class Layout:
    """Names of a family of checkpoints.

    Attributes:
        name (str): As in ``--from``.
        backbone (str): Class that it can be read into.
        markers (tuple[str, ...]): Keys that every file of this layout has; of two layouts whose markers a file has, it
            is the one that comes first.
        rename (tuple[tuple[str, str], ...]): Regular expression of a whole key, and what it becomes; the first that
            fits counts, and a key that none fits keeps its name.
        drop (tuple[str, ...]): Regular expressions of keys that have no place in a backbone and are no loss: buffers
            that are computed, and what belongs to another way of aggregating layers.
        transforms (tuple[str, ...]): Names of functions in ``surgery.py``, in order.
    """

    name: str
    backbone: str
    markers: tuple[str, ...]
    rename: tuple[tuple[str, str], ...] = ()
    drop: tuple[str, ...] = ()
    transforms: tuple[str, ...] = ()

    def name_of(self, key: str) -> str | None:
        """What a key is called in the backbone; None if it is to be dropped."""
        if any(re.fullmatch(pattern, key) for pattern in self.drop):
            return None
        for pattern, replacement in self.rename:
            match = re.fullmatch(pattern, key)
            if match:
                return match.expand(replacement)
        return key


_WB = r'(weight|bias)'
_TRANSFORMER_BLOCK = (
    (rf'blocks\.(\d+)\.norm([12])\.{_WB}', r'layers.\1.ln\2.\3'),
    (rf'blocks\.(\d+)\.attn\.(qkv|proj)\.{_WB}', r'layers.\1.attn.\2.\3'),
    (rf'blocks\.(\d+)\.mlp\.fc1\.{_WB}', r'layers.\1.ffn.layers.0.0.\2'),
    (rf'blocks\.(\d+)\.mlp\.fc2\.{_WB}', r'layers.\1.ffn.layers.1.\2'),
)
_SWIN_BLOCK = (
    (rf'layers\.(\d+)\.blocks\.(\d+)\.(norm[12])\.{_WB}', r'stages.\1.blocks.\2.\3.\4'),
    (r'layers\.(\d+)\.blocks\.(\d+)\.attn\.(.+)', r'stages.\1.blocks.\2.attn.w_msa.\3'),
    (rf'layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc1\.{_WB}', r'stages.\1.blocks.\2.ffn.layers.0.0.\3'),
    (rf'layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc2\.{_WB}', r'stages.\1.blocks.\2.ffn.layers.1.\3'),
    (rf'patch_embed\.proj\.{_WB}', r'patch_embed.projection.\1'),
)
_SWIN_BUFFERS = (r'.*\.attn\.relative_position_index', r'.*\.attn_mask')


def _pvt(block: str, norm: str, convolution: str) -> tuple[tuple[str, str], ...]:
    """Rules for the four stages of PVTv2, given how blocks, norms and depth-wise convolutions are called."""
    return tuple(
        (pattern, rf'layers.{i}.{name}')
        for i in range(4)
        for stage in (block.format(i, i + 1) + r'\.(\d+)\.',)
        for pattern, name in (
            (stage + r'(norm[12]\..+)', r'1.\1.\2'),
            (stage + rf'attn\.(q|kv)\.{_WB}', r'1.\1.attn.attn.\2_\3'),
            (stage + r'attn\.proj\.(.+)', r'1.\1.attn.attn.out_proj.\2'),
            (stage + r'attn\.((?:sr|norm)\..+)', r'1.\1.attn.\2'),
            (stage + r'mlp\.fc1\.(.+)', r'1.\1.ffn.layers.0.\2'),
            (stage + rf'mlp\.{convolution}\.{_WB}', r'1.\1.ffn.layers.1.\2'),
            (stage + r'mlp\.fc2\.(.+)', r'1.\1.ffn.layers.4.\2'),
            (norm.format(i, i + 1) + r'\.(.+)', r'2.\1'),
        )
    )


_FC = (rf'fc\.{_WB}', r'head.\1')

LAYOUTS = (
    Layout(
        'rla',  # the models of hfzhang31/RLA, whose first convolutions see [x, h]
        'S6LAResNet',
        ('stages.0.0.conv1.weight', 'conv_outs.0.weight', 'recurrent_convs.0.weight'),
        (*((rf'stages\.{i}\.(.+)', rf'layer{i + 1}.\1') for i in range(4)),),
        (r'conv_outs\..+', r'recurrent_convs\..+', r'stage_bns\..+', r'bn2\..+', r'fc\..+'),
        ('split_reads',),
    ),
    Layout(
        'timm-deep-stem',  # resnet50d and its like
        'S6LAResNet',
        ('conv1.0.weight', 'layer1.0.conv1.weight'),
        ((r'conv1\.(\d)\.(.+)', r'stem.\1.\2'), (r'bn1\.(.+)', r'stem.7.\1'), _FC),
    ),
    # mmdet, mmpretrain, torchvision and timm agree; so do S6LA files that keep the reads in the first convolutions.
    Layout('resnet', 'S6LAResNet', ('layer1.0.conv1.weight',), (_FC,), (), ('split_reads',)),
    Layout(
        'timm',  # DeiT's authors too
        'S6LAViT',
        ('patch_embed.proj.weight', 'blocks.0.attn.qkv.weight'),
        (
            *_TRANSFORMER_BLOCK,
            (rf'patch_embed\.proj\.{_WB}', r'patch_embed.projection.\1'),
            (rf'norm\.{_WB}', r'ln1.\1'),
        ),
        (),
        ('drop_distillation_token',),
    ),
    Layout(
        'torchvision',
        'S6LAViT',
        ('conv_proj.weight', 'encoder.layers.encoder_layer_0.ln_1.weight'),
        (
            (r'class_token', 'cls_token'),
            (r'encoder\.pos_embedding', 'pos_embed'),
            (rf'conv_proj\.{_WB}', r'patch_embed.projection.\1'),
            (rf'encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.{_WB}', r'layers.\1.ln\2.\3'),
            (rf'encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_{_WB}', r'layers.\1.attn.qkv.\2'),
            (rf'encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.{_WB}', r'layers.\1.attn.proj.\2'),
            (rf'encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.{_WB}', r'layers.\1.ffn.layers.0.0.\2'),
            (rf'encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.{_WB}', r'layers.\1.ffn.layers.1.\2'),
            (rf'encoder\.ln\.{_WB}', r'ln1.\1'),
            (rf'heads\.head\.{_WB}', r'head.\1'),
        ),
    ),
    Layout(
        'mmseg',
        'S6LAViT',
        ('patch_embed.projection.weight', 'layers.0.attn.attn.in_proj_weight'),
        (
            (rf'layers\.(\d+)\.attn\.attn\.in_proj_{_WB}', r'layers.\1.attn.qkv.\2'),
            (rf'layers\.(\d+)\.attn\.attn\.out_proj\.{_WB}', r'layers.\1.attn.proj.\2'),
        ),
        (),
        ('zero_patch_bias',),
    ),
    Layout('mmpretrain', 'S6LAViT', ('patch_embed.projection.weight', 'layers.0.attn.qkv.weight')),
    Layout(
        'swin',  # Swin's authors, and timm before 0.9
        'S6LASwin',
        ('patch_embed.proj.weight', 'layers.0.blocks.0.attn.qkv.weight', 'layers.0.downsample.reduction.weight'),
        (*_SWIN_BLOCK, (r'layers\.(\d+)\.downsample\.(.+)', r'stages.\1.downsample.\2')),
        _SWIN_BUFFERS,
        ('reorder_patch_merging',),
    ),
    Layout(
        'timm',
        'S6LASwin',
        ('patch_embed.proj.weight', 'layers.0.blocks.0.attn.qkv.weight', 'layers.1.downsample.reduction.weight'),
        (
            *_SWIN_BLOCK,
            *((rf'layers\.{i + 1}\.downsample\.(.+)', rf'stages.{i}.downsample.\1') for i in range(3)),
            (rf'head\.fc\.{_WB}', r'head.\1'),
        ),
        _SWIN_BUFFERS,
        ('reorder_patch_merging',),
    ),
    Layout(
        'torchvision',
        'S6LASwin',
        ('features.0.0.weight', 'features.1.0.attn.relative_position_bias_table'),
        (
            (rf'features\.0\.0\.{_WB}', r'patch_embed.projection.\1'),
            (rf'features\.0\.2\.{_WB}', r'patch_embed.norm.\1'),
            *(
                rule
                for i in range(4)
                for rule in (
                    (rf'features\.{2 * i + 1}\.(\d+)\.(norm[12])\.(.+)', rf'stages.{i}.blocks.\1.\2.\3'),
                    (rf'features\.{2 * i + 1}\.(\d+)\.attn\.(.+)', rf'stages.{i}.blocks.\1.attn.w_msa.\2'),
                    (rf'features\.{2 * i + 1}\.(\d+)\.mlp\.0\.(.+)', rf'stages.{i}.blocks.\1.ffn.layers.0.0.\2'),
                    (rf'features\.{2 * i + 1}\.(\d+)\.mlp\.3\.(.+)', rf'stages.{i}.blocks.\1.ffn.layers.1.\2'),
                    (rf'features\.{2 * i + 2}\.(reduction|norm)\.(.+)', rf'stages.{i}.downsample.\1.\2'),
                )
            ),
        ),
        _SWIN_BUFFERS,
        ('reorder_patch_merging',),
    ),
    # mmpretrain, mmdet and mmseg agree.
    Layout('mmpretrain', 'S6LASwin', ('patch_embed.projection.weight', 'stages.0.blocks.0.attn.w_msa.qkv.weight')),
    Layout(
        'pvt',  # PVTv2's authors
        'S6LAPVTv2',
        ('patch_embed1.proj.weight', 'block1.0.attn.q.weight'),
        (
            *_pvt('block{1}', 'norm{1}', r'dwconv\.dwconv'),
            *((rf'patch_embed{i + 1}\.proj\.(.+)', rf'layers.{i}.0.projection.\1') for i in range(4)),
            *((rf'patch_embed{i + 1}\.norm\.(.+)', rf'layers.{i}.0.norm.\1') for i in range(4)),
        ),
        (),
        ('join_q_and_kv', 'linear_to_convolution'),
    ),
    Layout(
        'timm',
        'S6LAPVTv2',
        ('patch_embed.proj.weight', 'stages.0.blocks.0.attn.q.weight'),
        (
            *_pvt(r'stages\.{0}\.blocks', r'stages\.{0}\.norm', 'dwconv'),
            (r'patch_embed\.proj\.(.+)', r'layers.0.0.projection.\1'),
            (r'patch_embed\.norm\.(.+)', r'layers.0.0.norm.\1'),
            (r'stages\.(\d+)\.downsample\.proj\.(.+)', r'layers.\1.0.projection.\2'),
            (r'stages\.(\d+)\.downsample\.norm\.(.+)', r'layers.\1.0.norm.\2'),
        ),
        (),
        ('join_q_and_kv', 'linear_to_convolution'),
    ),
    Layout('mmdet', 'S6LAPVTv2', ('layers.0.0.projection.weight', 'layers.0.1.0.attn.attn.in_proj_weight')),
)


def layouts_of(backbone: str) -> list[Layout]:
    """The layouts that can be read into a class of backbones."""
    return [layout for layout in LAYOUTS if layout.backbone == backbone]


def family_of(module: nn.Module) -> str:
    """The class in ``LAYOUTS`` that a backbone is of.

    Raises:
        ValueError: If it is of none.
    """
    families = {layout.backbone for layout in LAYOUTS}
    family = next((cls.__name__ for cls in type(module).__mro__ if cls.__name__ in families), None)
    if family is None:
        raise ValueError(f'{type(module).__name__} is none of {sorted(families)}')
    return family


def read_layout(path: str) -> Layout:
    """Reads a layout from a JSON file: an object with the attributes of :class:`Layout`.

    Raises:
        ValueError: If the file is no such object.
        OSError: If it cannot be read.
    """
    with open(path, encoding='utf-8') as file:
        try:
            content = json.load(file)
        except ValueError as error:
            raise ValueError(f'{path} is no JSON: {error}') from None
    known = [field.name for field in fields(Layout)]
    needed = ('name', 'backbone', 'markers')
    if not isinstance(content, dict) or not set(needed) <= set(content) <= set(known):
        raise ValueError(f'{path} must hold an object with the keys {needed} and, if wanted, others of {known}')
    for key in ('markers', 'drop', 'transforms'):
        if not isinstance(content.get(key, []), list) or not all(isinstance(v, str) for v in content.get(key, [])):
            raise ValueError(f'{path}: {key} must be a list of strings')
        content[key] = tuple(content.get(key, ()))
    rules = content.get('rename', [])
    if not content['markers']:
        raise ValueError(f'{path}: markers must name a key at least')
    if not isinstance(rules, list) or not all(_is_rule(rule) for rule in rules):
        raise ValueError(f'{path}: rename must be a list of [regular expression, replacement]')
    content['rename'] = tuple(tuple(rule) for rule in rules)
    for pattern, replacement in (*((pattern, '') for pattern in content['drop']), *rules):
        try:
            re.sub(pattern, replacement, '')
        except (re.error, IndexError) as error:
            raise ValueError(f'{path}: {pattern!r} is no regular expression for {replacement!r}: {error}') from None
    unknown = set(content['transforms']) - set(TRANSFORMS)
    if unknown:
        raise ValueError(f'{path}: {sorted(unknown)} are no transforms: use some of {sorted(TRANSFORMS)}')
    return Layout(**content)


def _is_rule(rule: object) -> bool:
    return isinstance(rule, list) and len(rule) == 2 and all(isinstance(part, str) for part in rule)


def find_layout(
    weights: dict[str, Tensor], layouts: Iterable[Layout], prefix: str | None = None
) -> tuple[Layout, str] | None:
    """Finds out which layout a checkpoint has, and where in it.

    Args:
        weights (dict[str, Tensor]): Tensors by name.
        layouts (Iterable[Layout]): Candidates, the more special ones first.
        prefix (str, optional): What the names of the backbone start with. Defaults to None: found out.

    Returns:
        tuple[Layout, str] | None: The layout and the prefix (ends with a dot, or is empty); None if none fits.

    Raises:
        ValueError: If a network of the layout is there more than once.
    """
    for layout in layouts:
        first, *rest = layout.markers
        ends = [key[: -len(first)] for key in weights if key.endswith(first)] if prefix is None else [prefix]
        found = [
            end
            for end in ends
            if (not end or end.endswith('.')) and all(end + marker in weights for marker in (first, *rest))
        ]
        if len(found) > 1:
            raise ValueError(f'there are {len(found)} networks in the checkpoint, at {found}: name one with prefix')
        if found:
            return layout, found[0]
    return None
