#!/usr/bin/env bash
# Compiles the op's CPU kernels with the address and undefined-behaviour sanitizers and runs the kernel tests on them.
# Nothing in this clone changes: package and module are built in a temporary folder, which is removed afterwards.
#
#   .dev_scripts/sanitize_op.sh [PYTEST ARGUMENTS]     default: all but what compares instruction sets in other processes
#   PYTHON         the interpreter with torch, mmcv and pytest (default: python)
#   CXX            g++ (default) or another GCC: the sanitizers' runtime must be preloaded, and GCC says where it is
#   ATEN_CPU_CAPABILITY  the instruction set to check: default, avx2 or avx512 (default: first default, then the best)
#
# The first report ends the run with its stack. Leaks are not looked for: Python and torch leave plenty at exit.
# Compiling takes some minutes, the tests one or two.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python}
CXX=${CXX:-g++}

work=$(mktemp -d "${TMPDIR:-/tmp}/s6la_sanitize.XXXXXX")
trap 'rm -rf "$work"' EXIT

# A compiler that adds the sanitizers. -O1 comes last and so wins over the -O3 of the build: the compiler would optimise
# the instrumented code for an age. vptr checks need type information of torch's classes that its libraries do not export.
cat >"$work/c++" <<EOF
#!/bin/sh
exec $CXX "\$@" -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all
EOF
chmod +x "$work/c++"
echo "[sanitize] compiling in $work; this takes some minutes"
cd "$root"
if ! CC=$work/c++ CXX=$work/c++ S6LA_WITH_OPS=1 S6LA_WITH_CUDA=0 FORCE_CUDA='' MAX_JOBS=${MAX_JOBS:-2} \
    "$python" setup.py build --build-base "$work/build" --build-lib "$work/lib" >"$work/build.log" 2>&1; then
    tail -n 30 "$work/build.log" >&2
    echo '[sanitize] error: the build failed, its last lines are above' >&2
    exit 1
fi

# The runtimes must come before everything else; libstdc++ too, or the first C++ exception finds no __cxa_throw.
preload=
for library in libasan.so libubsan.so libstdc++.so; do
    preload+=$("$CXX" -print-file-name="$library"):
done
export PYTHONPATH=$work/lib OMP_NUM_THREADS=2
# Reports go to files: pytest would take what a dying process prints with it.
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1:allocator_may_return_null=1:log_path=$work/report
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1:log_path=$work/report
cd "$work/lib" # `python -m` imports from here, so not from the clone

run() {
    if ! LD_PRELOAD=$preload "$python" "$@"; then
        cat "$work"/report.* >&2 2>/dev/null || true
        exit 1
    fi
}

run -W ignore - "$work" <<'PY'
import sys
from s6la_mm.ops import extension

assert extension.load_error() is None, extension.load_error()
import s6la_mm._ext

assert s6la_mm._ext.__file__.startswith(sys.argv[1]), s6la_mm._ext.__file__
symbols = open(s6la_mm._ext.__file__, 'rb').read()
assert b'__asan_report_load' in symbols and b'__ubsan_handle' in symbols, 'the module is not instrumented'
print('[sanitize] testing', s6la_mm._ext.__file__)
PY

arguments=("$@")
if [ $# = 0 ]; then
    arguments=(-q -k 'not instruction_sets')
fi
tests=("$root"/tests/test_ops/test_kernels*.py)
for capability in ${ATEN_CPU_CAPABILITY:-default best}; do
    echo "[sanitize] instruction set: $capability"
    if [ "$capability" = best ]; then unset ATEN_CPU_CAPABILITY; else export ATEN_CPU_CAPABILITY=$capability; fi
    run -m pytest -p no:cacheprovider -c "$root/pyproject.toml" --rootdir "$root" "${arguments[@]}" "${tests[@]}"
done
echo '[sanitize] clean'
