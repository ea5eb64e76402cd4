"""Loading weights safely, and saying what was loaded.

What builds backbones is in ``s6la_mm.conversion``, as the backbones need this package.
"""

from .pretrained import InputChannelsMixin, PretrainedMixin, load_pretrained
from .reading import read_weights
from .safe_globals import allow_mmengine_checkpoints

__all__ = ['InputChannelsMixin', 'PretrainedMixin', 'allow_mmengine_checkpoints', 'load_pretrained', 'read_weights']
