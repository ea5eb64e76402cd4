"""The selective state update, the package's one custom op."""

from .selective_scan import DISCRETIZATIONS, selective_scan, selective_update

__all__ = ['DISCRETIZATIONS', 'selective_scan', 'selective_update']
