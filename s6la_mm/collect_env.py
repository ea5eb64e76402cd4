"""What is installed and what the op is compiled for: `python -m s6la_mm.collect_env`. Bug reports begin with it."""

from __future__ import annotations

import importlib

import torch
from mmcv.utils import collect_env as mmcv_collect_env

from .ops import extension
from .version import __version__

# By import name: forks have the same under other distribution names. mmengine and mmcv are in what mmcv collects.
PACKAGES = ('mmdet', 'mmseg', 'mmpretrain')


def collect_env() -> dict[str, str]:
    """Collects versions, devices and compilers (as mmcv's function of this name), and the state of the compiled op.

    Returns:
        dict[str, str]: What is printed, by its title, in order.

    Example:
        >>> collect_env()['s6la_mm'] == __version__
        True
    """
    info = {title: str(value).strip() for title, value in mmcv_collect_env().items()}
    info.update({package: _version_of(package) for package in PACKAGES})
    info['s6la_mm'] = __version__
    return info | describe_extension()


def describe_extension() -> dict[str, str]:
    """Says which kernels of the op are compiled, for what and with what; where they are not, why and what to do.

    Returns:
        dict[str, str]: Lines of text by their title.
    """
    devices = extension.compiled_devices()
    if not devices:
        return {
            's6la_mm op': f'plain PyTorch, since {extension.load_error()}',
            'To compile it': extension.build_command(),
        }
    build = extension.build_info()
    info = {
        's6la_mm op': f'compiled for {", ".join(sorted(devices))}',
        'Compiled with': f'{build["compiler"]}, torch {build["torch"]}',
        'CPU kernels': f'{build["cpu_capability"]}, chosen at run time (ATEN_CPU_CAPABILITY overrides it)',
    }
    if build['cuda']:
        info['CUDA kernels'] = f'CUDA {build["cuda"]}, architectures {build["cuda_archs"]}'
    else:
        info['CUDA kernels'] = 'not compiled'
        if torch.version.cuda:
            info['To compile them'] = f'FORCE_CUDA=1 {extension.build_command()}'
    return info


def _version_of(package: str) -> str:
    try:
        return importlib.import_module(package).__version__
    except ModuleNotFoundError as error:
        return 'not installed' if error.name == package else f'does not import: {error}'
    except Exception as error:  # a version that does not fit the others raises AssertionError, RuntimeError ...
        return f'does not import: {type(error).__name__}: {error}'


def main() -> None:
    """Prints the collection."""
    for title, text in collect_env().items():
        print(f'{title}: {text}')


if __name__ == '__main__':
    main()
