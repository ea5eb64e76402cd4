"""Loading weights safely, and saying what was loaded."""

from .pretrained import PretrainedMixin, load_pretrained
from .safe_globals import allow_mmengine_checkpoints

__all__ = ['PretrainedMixin', 'allow_mmengine_checkpoints', 'load_pretrained']
