"""What the releases of torch differ in, for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from s6la_mm.checkpoint.safe_globals import weights_only
from s6la_mm.compat import TORCH


def since(major: int, minor: int, what: str) -> pytest.MarkDecorator:
    """Skips what an older torch cannot do."""
    return pytest.mark.skipif(TORCH < (major, minor), reason=f'needs torch {major}.{minor} or newer: {what}')


HALF_ON_CPU = pytest.param(torch.float16, marks=since(2, 4, 'float16 layers, and autocast to it, on the CPU'))


def load(path: Path | str) -> Any:
    """As the tools load: no code in the file is run, and a caller cannot ask for less."""
    with weights_only():
        return torch.load(path, weights_only=False)
