"""Loading what a training has written, with every torch that this package runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from s6la_mm.checkpoint.safe_globals import weights_only


def load(path: Path | str) -> Any:
    """As the tools load: no code in the file is run, and a caller cannot ask for less."""
    with weights_only():
        return torch.load(path, weights_only=False)
