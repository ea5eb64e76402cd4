"""Checks of data sets before hours are spent on them: files, annotations, labels, and leakage between the splits."""

from .config import check_config_data
from .findings import KINDS, Finding, Report

__all__ = ['KINDS', 'Finding', 'Report', 'check_config_data']
