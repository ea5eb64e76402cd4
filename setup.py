"""Packaging of s6la_mm: `pip install --no-build-isolation -e .`, where torch and the OpenMMLab packages are.

Compiles the op when it can (build_ops.py); python setup.py build_ext --inplace does only that.
"""

import runpy
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# Hard requirements have one distribution name wherever they come from. The OpenMMLab packages do not: the
# originals (mmcv, mmdet, ...) and their maintained forks (onedl-mmcv, onedl-mmdetection, ...) give the same
# import names, so naming one here would pull it in on top of the other. s6la_mm/environment.py looks at what
# can be imported instead. No bound here is narrower than what the package runs with, so that installing changes nothing
# that is there: all but torch, with which mmcv compiles up to 2.13, are unbounded and come with torch and mmdet.
# OpenCV, which comes with mmcv, has several distribution names.
INSTALL_REQUIRES = ['torch>=2.1,<2.14', *'torchvision numpy scipy matplotlib pillow jinja2 pycocotools'.split()]

# The extras name the originals. mmcv is in none of them: pip alone would install it without its compiled ops
# (requirements/mmcv.txt has the command that compiles them). setuptools 82 removed pkg_resources, which the
# originals import.
MMDET = ['mmengine>=0.10.3,<1', 'mmdet>=3.1,<3.4', 'setuptools<82']
MMSEG = [*MMDET, 'mmsegmentation>=1.2,<1.3', 'ftfy', 'regex']
MMPRETRAIN = [*MMDET, 'mmpretrain>=1.2,<1.3', 'importlib_metadata']
TESTS = ['pytest', 'onnx', 'onnxruntime', 'onnxscript', 'timm', 'safetensors']
EXTRAS = {
    'mmdet': MMDET,
    'mmseg': MMSEG,
    'mmpretrain': MMPRETRAIN,
    'all': sorted({*MMSEG, *MMPRETRAIN}),
    'tests': TESTS,
    'dev': [*TESTS, 'ruff', 'pre-commit'],
}

# pip runs this file several times, and all but one of the runs are about metadata: they need no extension.
METADATA = {'egg_info', 'dist_info', 'sdist', 'clean'}
commands = {argument for argument in sys.argv[1:] if not argument.startswith('-')}
# Run, not imported: this folder is not on the import path when pip is at work.
build_ops = runpy.run_path(str(ROOT / 'build_ops.py'))
extension = build_ops['setup_arguments']() if commands and not commands & METADATA else {}

setup(
    name='s6la_mm',
    version=runpy.run_path(str(ROOT / 's6la_mm' / 'version.py'))['__version__'],
    description='Backbones with selective state space layer aggregation (S6LA) for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=['s6la_mm', 's6la_mm.*']),
    # Links to folders of the repository, where mim and mmengine look for configs and tools; a wheel has copies, without
    # the scripts that set up a clone.
    package_data={'s6la_mm': ['.mim/model-index.yml', '.mim/configs/**/*', '.mim/tools/**/*']},
    exclude_package_data={'s6la_mm': [f'.mim/tools/{name}.sh' for name in ('setup_env', 'run_tests', 'quickstart')]},
    python_requires='>=3.10',
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    zip_safe=False,
    **extension,
)
