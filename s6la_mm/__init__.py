"""S6LA for OpenMMLab: backbones that carry a selective state through their depth.

Importing this package registers its modules and allow-lists the types that mmengine checkpoints hold; nothing else
happens.
"""

from .environment import check_environment

check_environment()

from . import backbones, datasets, engine, layers, necks, optim, registry  # noqa: E402
from .checkpoint import allow_mmengine_checkpoints  # noqa: E402
from .version import __version__  # noqa: E402

allow_mmengine_checkpoints()

__all__ = ['__version__', 'backbones', 'datasets', 'engine', 'layers', 'necks', 'optim', 'registry']
