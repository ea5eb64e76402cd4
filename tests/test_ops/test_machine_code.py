"""What nvcc makes of the CUDA kernels, where there is one: vectors are loaded and stored by one instruction each."""

from __future__ import annotations

import runpy
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / '.dev_scripts' / 'make_kernel_table.py'


@pytest.fixture(scope='module')
def script():
    script = runpy.run_path(str(SCRIPT))
    if not script['tool']('nvcc') or not script['tool']('cuobjdump'):
        pytest.skip('there is no nvcc or no cuobjdump')
    return script


# Of x, dt, B; of h and, in the backward pass, the incoming gradient; and of what they become.
@pytest.mark.parametrize(
    ('file', 'inputs', 'state'), [('float', '128', '128'), ('float_bfloat16', '64', '128'), ('bfloat16', '64', '64')]
)
def test_vectors_move_at_once(script, file, inputs, state):
    kernels = script['compile_kernels'](file, usual_case=True)
    for channels_inner in (False, True):
        for backward in (False, True):
            name = next(n for n in kernels if 'map_kernel' in n and f'Lb{channels_inner:d}ELb{backward:d}ELb0E' in n)
            count = Counter(kernels[name].instructions)
            stores, loads = Counter(), Counter()
            loads.update({inputs: 3})
            loads.update({state: 1 + backward})
            if channels_inner:
                loads.update({'128': 2})  # A and the bias
            stores.update({inputs: 3 * backward})
            stores.update({state: 1})
            for width in ('64', '128'):
                assert count[f'STG.E.{width}'] == stores[width], name
                assert count[f'LDG.E.{width}.CONSTANT'] == loads[width], name
            # One by one, only the sums for A and the bias are stored.
            assert count['STG.E'] <= (8 if channels_inner else 2) * backward, name
            assert not count['STL'] and not count['LDL'], f'{name} keeps numbers in memory'


@pytest.mark.parametrize('file', ['float', 'float_bfloat16', 'bfloat16'])
def test_registers_leave_room_for_enough_threads(script, file):
    """At least 24 warps of a multiprocessor's 64: three blocks in the backward pass, four in the forward pass."""
    for name, code in script['compile_kernels'](file).items():
        if 'map_kernel' in name and 'ELb0EEE' in name:
            assert code.registers <= (80 if 'ELb1ELb0EEE' in name else 64), name
            assert not any(i.startswith(('STL', 'LDL')) for i in code.instructions), f'{name} spills'
