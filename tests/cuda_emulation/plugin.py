"""`pytest -p cuda_emulation.plugin`: the module at $S6LA_EMULATION takes the place of ``s6la_mm._ext``."""

from __future__ import annotations

import os
import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import spec_from_file_location

NAME = 's6la_mm._ext'


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != NAME:
            return None
        module = os.environ['S6LA_EMULATION']
        return spec_from_file_location(name, module, loader=ExtensionFileLoader(name, module))


def install() -> None:
    """Must come before anything imports s6la_mm."""
    assert NAME not in sys.modules, 'the real module is loaded already'
    sys.meta_path.insert(0, Finder())


def pytest_configure() -> None:
    install()


def pytest_report_header() -> str:
    import s6la_mm.ops  # noqa: F401  (loads it)

    assert sys.modules[NAME].__file__ == os.environ['S6LA_EMULATION']
    return f'CUDA kernels emulated on the CPU: {os.environ["S6LA_EMULATION"]}'
