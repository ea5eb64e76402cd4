"""Random numbers that depend on where a training is, not on how it came there.

A generator's state is lost with the process: what follows a resume would differ from what would have come. Here each
sample and each iteration has a seed of its own, computed from the run's seed, so nothing has to be saved.
"""

from __future__ import annotations

import random

import numpy as np
import torch


def derive_seed(*numbers: int) -> int:
    """Mixes non-negative integers, the run's seed and a position, into a seed of 32 bits.

    Example:
        >>> derive_seed(0, 1, 2) == derive_seed(0, 1, 2), derive_seed(0, 1, 2) == derive_seed(0, 2, 1)
        (True, False)
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_generators(seed: int) -> None:
    """Seeds the global generators of Python, numpy and torch (all devices) of this process."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
