"""What is known about a family of backbones besides its code, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple

from mmengine.registry import MODELS
from torch import Tensor, nn

from ...checkpoint.layouts import Layout
from ...checkpoint.surgery import Transform
from ...environment import require_mmpretrain

# Of a backbone, the tensors of a checkpoint by its own names, and the size of images: what computes the features that
# the backbone would compute with that checkpoint.
Builder = Callable[[nn.Module, dict[str, Tensor], tuple[int, int]], Callable[[Tensor], Tensor]]


class Size(NamedTuple):
    """A size that a backbone comes in.

    Attributes:
        name (str): As on command lines: ``'r50'``, ``'swin-t'`` ...
        title (str): As in tables.
        options (dict): What the plain and the S6LA network are built with; they output the last stage, as for a
            classifier.
        channels (int): Channels of that output.
    """

    name: str
    title: str
    options: dict[str, Any]
    channels: int


@dataclass(frozen=True, eq=False)
class Family:
    """A family of backbones: one S6LA class, and what the converter, the tools and the tests ask about it.

    Attributes:
        name (str): The S6LA class.
        module (str): Its module in ``s6la_mm.backbones``.
        plain_name (str): The class that it extends, as configs name it.
        layouts (tuple[Layout, ...]): Checkpoints that it can start from; of two whose markers a file has, it is the
            one that comes first.
        networks (Mapping[str, tuple[str, Builder]]): By layout, how to run the network that a checkpoint is from: the
            package that has it, and a function that builds it.
        sizes (tuple[Size, ...]): The sizes that it comes in.
        small (dict): Options of a network that computes in milliseconds, for tests.
        transforms (Mapping[str, Transform]): What layouts, its own and those of users, can do to tensors, by name.
        image_size (int): Side of the images that it is measured with.
        channels_last (bool): Whether it is measured with that memory format.
        measured_with (dict): Options beside those of a size when it is measured.
        head (str): What the linear layer of mmpretrain's classifier on it is called.
        aliases (Mapping[str, str]): Other names of sizes.
        relatives (Mapping[str, str]): Classes to measure beside it, by their titles; they take the options of a size.
    """

    name: str
    module: str
    plain_name: str
    layouts: tuple[Layout, ...]
    networks: Mapping[str, tuple[str, Builder]]
    sizes: tuple[Size, ...]
    small: dict[str, Any]
    transforms: Mapping[str, Transform] = field(default_factory=dict)
    image_size: int = 224
    channels_last: bool = False
    measured_with: dict[str, Any] = field(default_factory=dict)
    head: str = 'head.fc'
    aliases: Mapping[str, str] = field(default_factory=dict)
    relatives: Mapping[str, str] = field(default_factory=dict)

    @property
    def on_mmpretrain(self) -> bool:
        """Whether it stands on mmpretrain, which is optional: its module is imported when it is asked for."""
        return self.plain_name.startswith('mmpretrain.')

    def load(self) -> type[nn.Module]:
        """The S6LA class.

        Raises:
            ImportError: If it stands on mmpretrain, and that is not installed.
        """
        if self.on_mmpretrain:
            require_mmpretrain(self.name)
        return getattr(import_module(f's6la_mm.backbones.{self.module}'), self.name)

    def plain_type(self, options: Mapping[str, Any], scope: str | None = None) -> str:
        """The plain network beside the S6LA one with these options, as configs of a default scope name it."""
        return self.plain_name

    def load_plain(self, options: Mapping[str, Any], scope: str | None = None) -> type[nn.Module]:
        """The class of :meth:`plain_type`."""
        if self.on_mmpretrain:
            require_mmpretrain(self.name)
        return MODELS.get(self.plain_type(options, scope))
