"""Mistakes that are put into the CUDA sources, one at a time, to see whether the tests of the op find them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from . import build

MAP, TOKEN, VECTOR, LAUNCH, HOST = (
    'map_kernel.cuh',
    'token_kernels.cuh',
    'vector.cuh',
    'kernels.cuh',
    'selective_scan_cuda.cpp',
)


@dataclass(frozen=True)
class Mistake:
    """A text in a file of csrc/cuda, what takes its place, and which tests should fail."""

    file: str
    old: str
    new: str
    tests: str  # files of tests/test_ops, and after a space what pytest selects in them
    flavour: str = 'fast'

    def module(self, folder: Path) -> Path:
        """Compiles the float32 kernels, or the host code, with the mistake in it.

        Args:
            folder (Path): Where the changed sources go.
        """
        csrc = folder / 'csrc'
        shutil.copytree(build.CSRC, csrc)
        path = csrc / 'cuda' / self.file
        path.write_text(path.read_text().replace(self.old, self.new))
        return build.build(self.flavour, csrc, (HOST if self.file == HOST else 'float.cu',))


NORMALIZED = 'test_kernels_normalized.py test_sizes'
BACKWARD = 'test_kernels_backward.py test_sizes'
STRIDES = 'test_kernels_backward.py test_strides'
MISTAKES = {
    'barrier before the sum over the warps': Mistake(
        MAP, '= v;\n  __syncthreads();\n  if (S6LA_USUALLY', '= v;\n  if (S6LA_USUALLY', NORMALIZED
    ),
    'barrier behind the sum over the warps': Mistake(
        MAP, '  }\n  __syncthreads();\n  return shared[lane];', '  }\n  return shared[lane];', NORMALIZED
    ),
    'idle lanes return': Mistake(
        MAP, '    const auto place = ', '    if (!inside) return;\n    const auto place = ', NORMALIZED
    ),
    'idle lanes skip the sum': Mistake(
        MAP, '    const auto place = ', '    if (!inside) continue;\n    const auto place = ', NORMALIZED
    ),
    'one shuffle too few': Mistake(
        MAP, 'v = add_lanes(v, lanes, kWarp);', 'v = add_lanes(v, 2 * lanes, kWarp);', NORMALIZED
    ),
    'a factor of the gradient of x': Mistake(MAP, 'by_r * (r * r)', 'by_r * r', NORMALIZED),
    'the tiles before the last': Mistake(
        MAP, 'sum_A = sum_A + g.A;', 'sum_A = g.A;', 'test_kernels_backward.py large_map'
    ),
    'numbers that are not there in the sums': Mistake(
        MAP, 'if (left < n) {', 'if (false) {', 'test_kernels_normalized.py every_dtype'
    ),
    'no tail is read': Mistake(VECTOR, 'k < left ? p[k] : Storage(0)', 'Storage(0)', BACKWARD),
    'no tail is written': Mistake(VECTOR, 'if (k < left) p[k] = numbers[k];', '', BACKWARD),
    'a tail too long is read': Mistake(VECTOR, 'k < left ? p[k]', 'k <= left ? p[k]', BACKWARD, 'sanitized'),
    'a tail too long is written': Mistake(VECTOR, 'if (k < left) p[k]', 'if (k <= left) p[k]', BACKWARD, 'sanitized'),
    'strides of rows are not looked at': Mistake(LAUNCH, '| batch | row) %', '| batch) %', STRIDES),
    'strides of batches are not looked at': Mistake(LAUNCH, '| batch | row) %', '| row) %', STRIDES),
    'the beginning is not looked at': Mistake(
        LAUNCH, '(reinterpret_cast<uintptr_t>(o.data) | batch', '(batch', STRIDES
    ),
    'batches are always one': Mistake(
        HOST, 'o.data != nullptr && o.batch != p.rows * o.row', 'false', 'test_kernels_backward.py test_strides'
    ),
    'sums of one block only': Mistake(
        HOST,
        'add_up_parameters(results, sums, 1, {0})',
        'add_up_parameters(results, sums.slice(0, 0, 1), 1, {0})',
        'test_kernels_backward.py large_map',
    ),
    'barrier of the tokens': Mistake(TOKEN, '          __syncthreads();\n', '', BACKWARD),
    'one buffer of the tokens': Mistake(TOKEN, 'turn = 1 - turn;', '', 'test_kernels_backward.py test_steps'),
    'idle tokens return': Mistake(
        TOKEN, '  const int64_t row = active ?', '  if (!active) return;\n  const int64_t row = active ?', BACKWARD
    ),
    'idle tokens count': Mistake(TOKEN, 'active ? g.B : Compute(0)', 'g.B', BACKWARD),
}
# Quick to compile and to find; the others take their turn at night.
EVERY_TIME = ('barrier before the sum over the warps', 'idle lanes return')
