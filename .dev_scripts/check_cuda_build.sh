#!/usr/bin/env bash
# Compiles and links the op with its CUDA kernels, loads it and prints what it was compiled for. No GPU is needed, and
# nothing in this clone changes: the build lives in the user's cache, and a second run finds it there.
#
#   .dev_scripts/check_cuda_build.sh [ARCHITECTURES]     default: 9.0; as in TORCH_CUDA_ARCH_LIST, e.g. "8.0;9.0+PTX"
#   PYTHON     the interpreter with torch and mmcv (default: python)
#   CUDA_HOME  the CUDA toolkit (default: that of the nvcc on PATH, else /usr/local/cuda)
#   MAX_JOBS   compiler processes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

archs=${1:-9.0}
python=${PYTHON:-python}
versions=$("$python" -c 'import sys, torch, mmcv; print(sys.version, torch.__version__, mmcv.__version__)')
key=$( (find s6la_mm/ops/csrc -type f -print0 | sort -z | xargs -0 cat setup.py build_ops.py &&
    echo "$archs $versions ${CUDA_HOME:-}") | sha256sum | cut -c 1-12)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/s6la_mm
folder=$cache/cuda-$key

if [ ! -e "$folder" ]; then
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/tmp-cuda.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    echo "[cuda] compiling for $archs, which takes some minutes; log in $work/build.log"
    if ! FORCE_CUDA=1 S6LA_WITH_OPS=1 S6LA_WITH_CUDA=1 TORCH_CUDA_ARCH_LIST=$archs \
        "$python" setup.py build_ext --build-temp "$work/temp" --build-lib "$work/lib" >"$work/build.log" 2>&1; then
        cp "$work/build.log" "$cache/cuda-failed.log"
        tail -n 30 "$work/build.log" >&2
        echo "[cuda] error: the build failed, its last lines are above, all in $cache/cuda-failed.log" >&2
        exit 1
    fi
    rm -rf "$work/temp"
    mv -T "$work" "$folder" 2>/dev/null || [ -e "$folder" ] # another run may have been first
fi
grep '^s6la_mm: ' "$folder/build.log"
grep -o -e '-gencode=[^ ]*' "$folder/build.log" | sort -u
tail -n 1 "$folder/build.log" | cut -c 1-200 # the linker's command
# By its path: importing s6la_mm would load the one that this clone uses.
"$python" - "$folder" <<'PY'
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch

(path,) = Path(sys.argv[1], 'lib', 's6la_mm').glob('_ext*.so')
spec = spec_from_file_location('s6la_mm._ext', path)
spec.loader.exec_module(module_from_spec(spec))
print('[cuda] compiled, linked and loaded:', torch.ops.s6la_mm.build_info())
PY
