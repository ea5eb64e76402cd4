"""Loading weights safely, and saying what was loaded.

What builds backbones is not imported here, as the backbones need this package: ``s6la_mm.conversion.convert`` and
``s6la_mm.conversion.inspection``.
"""

from .pretrained import PretrainedMixin, load_pretrained
from .reading import read_weights
from .safe_globals import allow_mmengine_checkpoints

__all__ = ['PretrainedMixin', 'allow_mmengine_checkpoints', 'load_pretrained', 'read_weights']
