"""Write the table of the CUDA kernels in docs/op.md: what they move, calculate and occupy, from the compiler's output.

No GPU is needed, but nvcc, cuobjdump and a C++ compiler. Registers and instructions are read from the machine code,
grids from the host code, which runs on the emulation of tests/cuda_emulation without executing a kernel. What follows
from them is a model: the slowest of memory, instructions and latency, without the time of a launch.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from s6la_mm.common.cli import clear_errors
from s6la_mm.common.files import replace_between

ROOT = Path(__file__).resolve().parents[1]
CUDA = ROOT / 's6la_mm' / 'ops' / 'csrc' / 'cuda'
DOCUMENT = ROOT / 'docs' / 'op.md'
BEGIN, END = '<!-- table of .dev_scripts/make_kernel_table.py -->', '<!-- end of the table -->'

MULTIPROCESSORS, REGISTERS, THREADS, BLOCKS = (
    132,
    65536,
    2048,
    32,
)  # of an H100 or H200 (SXM), the last three of each one
ISSUED = 0.7 * MULTIPROCESSORS * 4 * 32 * 1.7e9  # instructions of single threads per second, 70 % of what could be
COPIED = {'H100': 0.92 * 3.35e12, 'H200': 0.92 * 4.8e12}  # bytes per second that a large copy reads and writes
LATENCY = 8e-7  # seconds that a read takes under load

MAPS = [(8, 32, 200, 336), (8, 32, 25, 42), (2, 32, 50, 84)]  # of ResNet-50 at 800 x 1344: first, last; batch 2, third
TOKENS = (128, 384, 16)  # DeiT-S
TYPES = {'float32': 'float', 'bfloat16': 'float_bfloat16'}  # of the inputs, beside a float32 state: the .cu file


@dataclass(frozen=True)
class Code:
    """What the compiler made of a kernel."""

    registers: int
    instructions: list[str]  # mnemonics, up to where the kernel ends

    @property
    def per_tile(self) -> int:
        """Without the sums at the end, once per block: up to the last vector that is stored."""
        return 1 + max(i for i, name in enumerate(self.instructions) if name in ('STG.E.64', 'STG.E.128'))


@dataclass(frozen=True)
class Launch:
    """What the host code asks for."""

    blocks: int
    threads: int


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit: on PATH, in $CUDA_HOME, or among those that the triton package brings."""
    spec = find_spec('triton')
    folders = [Path(os.environ.get('CUDA_HOME', '/usr/local/cuda')) / 'bin']
    folders += [
        Path(folder) / 'backends' / 'nvidia' / 'bin' for folder in (spec and spec.submodule_search_locations) or ()
    ]
    return shutil.which(name) or next(
        (found for folder in folders if (found := shutil.which(name, path=str(folder)))), None
    )


def compile_kernels(name: str, *, usual_case: bool = False) -> dict[str, Code]:
    """Compiles csrc/cuda/NAME.cu for sm_90 and reads the machine code.

    Args:
        name (str): File without its suffix.
        usual_case (bool): Leave out what the usual case does not run: unaligned and partial vectors, options. Defaults
            to False.

    Returns:
        dict[str, Code]: By the kernels' mangled names.

    Raises:
        RuntimeError: If nvcc or cuobjdump is missing, or refuses.
    """
    nvcc, cuobjdump = tool('nvcc'), tool('cuobjdump')
    if not nvcc or not cuobjdump:
        raise RuntimeError('nvcc and cuobjdump are needed. Install the CUDA toolkit, and put its bin on PATH.')
    folders = [Path(torch.__file__).parent / 'include']
    spec = find_spec('nvidia')
    for folder in (spec and spec.submodule_search_locations) or ():
        folders += sorted(Path(folder).glob('*/include'))
    flags = ['-O3', '-std=c++17', '--expt-relaxed-constexpr', '-arch=sm_90', '-Xptxas', '-v']
    flags += [part for folder in folders for part in ('-isystem', str(folder))]
    with tempfile.TemporaryDirectory() as work:
        target = f'{work}/kernels.cubin'
        define = ['-DS6LA_USUAL_CASE'] if usual_case else []
        log = _output(nvcc, *flags, *define, '-cubin', str(CUDA / f'{name}.cu'), '-o', target)
        listing = _output(cuobjdump, '-sass', target)
    registers = dict(re.findall(r"entry function '(\w+)'.*?Used (\d+) registers", log, re.DOTALL))
    kernels = {}
    for match in re.finditer(r'Function : (\S+)\n(.*?)(?=Function :|\Z)', listing, re.DOTALL):
        found = re.findall(r'/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\d+ )?([A-Z][A-Z0-9_.]+)', match[2])
        end = max(i for i, instruction in enumerate(found) if instruction == 'EXIT')
        kernels[match[1]] = Code(int(registers[match[1]]), found[: end + 1])
    return kernels


def _output(*command: str) -> str:
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f'{" ".join(command)}\n{run.stdout[-3000:]}{run.stderr[-3000:]}')
    return run.stdout + run.stderr


LAUNCHES = """
import torch, s6la_mm._ext
from make_kernel_table import MAPS, TOKENS, TYPES
def call(h, x, A):
    bias = torch.zeros(A.shape[0])
    x = x.unsqueeze(0)
    norm = 1e-6 if A.dim() == 1 else None
    B = x if A.dim() == 1 else x[:, :, : A.shape[1]].contiguous()
    arguments = (x, x, A, B, h, bias, True, False, False, norm)
    grad = torch.ops.s6la_mm.selective_scan(*arguments)
    torch.ops.s6la_mm.selective_scan_backward(grad, *arguments, [True] * 6)
for dtype in TYPES:
    dtype = getattr(torch, dtype)
    for shape in MAPS:
        for memory in (torch.contiguous_format, torch.channels_last):
            h = torch.empty(shape, memory_format=memory)
            call(h, torch.empty_like(h, dtype=dtype), torch.empty(shape[1]))
    batch, D, N = TOKENS
    call(torch.empty(batch, D, N), torch.empty(batch, D, dtype=dtype), torch.empty(D, N))
"""


def launches() -> list[Launch]:
    """The grids of all rows in order, as the host code chooses them on a device of ``MULTIPROCESSORS``."""
    sys.path.insert(0, str(ROOT / 'tests'))
    from cuda_emulation.build import build

    with tempfile.TemporaryDirectory() as work:
        log = Path(work, 'log')
        environment = os.environ | {
            'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests'), str(ROOT / '.dev_scripts')]),
            'S6LA_EMULATION': str(build()),
            'CUDA_EMULATION_MULTIPROCESSORS': str(MULTIPROCESSORS),
            'CUDA_EMULATION_LOG': str(log),
            'CUDA_EMULATION_RUN': '0',
        }
        code = f'import cuda_emulation.plugin\ncuda_emulation.plugin.install()\n{LAUNCHES}'
        subprocess.run([sys.executable, '-W', 'ignore', '-c', code], env=environment, check=True)
        return [Launch(*map(int, line.split()[:2])) for line in log.read_text().splitlines()]


def row(name: str, types: str, code: Code, usual: Code | None, launch: Launch, numbers: int, reads: int, writes: int,
        extra: int) -> str:  # fmt: skip
    """A line of the table; ``reads`` and ``writes`` are bytes that must move, ``extra`` those of partial sums."""
    per_block = -(-code.registers // 8) * 8 * launch.threads
    resident = min(REGISTERS // per_block, THREADS // launch.threads, BLOCKS)
    running = min(resident * MULTIPROCESSORS, launch.blocks)
    must, moved = reads + writes, reads + writes + extra
    shares = []
    for copied in COPIED.values():
        # A thread has all its reads on the way at once.
        in_flight = reads / launch.blocks * running if name.startswith('map') else moved
        times = [moved / copied, reads * LATENCY / in_flight]
        if usual is not None:
            times.append(usual.per_tile / 4 * numbers / ISSUED)
        shares.append(f'{min(must / copied / max(times), 1):.0%}')
    instructions = f'{usual.per_tile / 4:.0f}' if usual else ''
    cells = [name, types, f'{must / 1e6:.2f}', f'{moved / 1e6:.2f}', instructions, code.registers, launch.blocks,
             f'{resident * launch.threads / THREADS:.0%}', *shares]  # fmt: skip
    return f'| {" | ".join(map(str, cells))} |'


def make_table() -> list[str]:
    """The rows for every kernel, shape and type, in Markdown."""
    rows = [
        '| kernel, shape | inputs | MB that must move | MB moved | instructions per number | registers | blocks | '
        'occupancy | of a copy, H100 | H200 |',
        '|---|---|--:|--:|--:|--:|--:|--:|--:|--:|',
    ]
    found = iter(launches())
    for dtype, file in TYPES.items():
        codes, usual = compile_kernels(file), compile_kernels(file, usual_case=True)
        size = getattr(torch, dtype).itemsize
        for shape in MAPS:
            numbers = torch.Size(shape).numel()
            for memory in ('contiguous', 'channels last'):
                for backward in (False, True):
                    pattern = rf'map_kernel.*Lb{int(memory != "contiguous")}ELb{int(backward)}ELb0E'
                    name = next(name for name in codes if re.search(pattern, name))
                    launch = next(found)
                    reads, writes = (3 * size + 8, 3 * size + 4) if backward else (3 * size + 4, 4)
                    sums = launch.blocks * 2 * shape[1] * 4 * 2 if backward else 0
                    title = f'map {"backward" if backward else "forward"}, {shape}, {memory}'
                    rows.append(
                        row(
                            title,
                            dtype,
                            codes[name],
                            usual[name],
                            launch,
                            numbers,
                            reads * numbers,
                            writes * numbers,
                            sums,
                        )
                    )
        batch, D, N = TOKENS
        state, inputs = batch * D * N * 4, batch * (2 * D + N) * size
        for kernel, reads, writes in (
            ('token_forward', state + inputs, state),
            ('token_backward', 2 * state + inputs, state + inputs),
        ):
            name = next(name for name in codes if kernel in name)
            launch = next(found)
            # Partial sums of A and the bias per split of the batch, of B per block of channels.
            channels = 256 // N
            blocks = D // channels
            splits = launch.blocks // blocks
            extra = (splits * D * (N + 1) + blocks * batch * N) * 4 * 2 if kernel == 'token_backward' else 0
            title = f'{kernel.replace("_", " ")}, {TOKENS}'
            rows.append(row(title, dtype, codes[name], None, launch, batch * D * N, reads, writes, extra))
    assert next(found, None) is None, 'a launch without a row'
    return rows


def main() -> None:
    """Writes the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    lines = make_table()
    document = replace_between(DOCUMENT.read_text(encoding='utf-8'), BEGIN, END, lines, DOCUMENT)
    DOCUMENT.write_text(document, encoding='utf-8')
    print('\n'.join([*lines, f'written to {DOCUMENT}']))


if __name__ == '__main__':
    with clear_errors():
        main()
