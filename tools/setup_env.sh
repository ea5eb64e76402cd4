#!/usr/bin/env bash
# Creates or updates the virtual environment of this clone and compiles the op in it; a second run is instant. Run it,
# or source it from another script: then $root (the clone) and $venv (the environment) are set.
#
#   S6LA_VENV       where the environment lives (default: .venv in this clone)
#   PYTHON          the interpreter it is made from (default: the first usable of python3, python3.11, 3.12, 3.10)
#   PIP_FIND_LINKS  pip's own variable; a mmcv wheel found there is used, else mmcv's ops are compiled here
#   MAX_JOBS        compiler processes (default: the number of cores)
#   S6LA_WITH_OPS   0 leaves the op out: PyTorch computes it, slower
#   S6LA_WITH_CUDA  0 or 1: compile the op's CUDA kernels (default: where a GPU is visible, since it takes minutes)
#
# Safe to interrupt, since the stamp that says "complete" is written last, and to start twice at once: one waits.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${S6LA_VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
pinned=$root/requirements/pinned.txt
mmcv=$root/requirements/mmcv.txt
supported='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'
needed_gb=12

say() { printf '[setup] %s\n' "$*"; }
die() {
    printf '[setup] error: %s\n' "$*" >&2
    exit 1
}

find_python() {
    local candidate candidates=${PYTHON:-python3 python3.11 python3.12 python3.10}
    for candidate in $candidates; do
        if "$candidate" -c "$supported" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    die "the pinned stack needs Python 3.10, 3.11 (tested) or 3.12; none of these is one: $candidates." \
        "Install one and name it: PYTHON=/path/to/python3.11 $0"
}

create_venv() {
    local python free_gb
    if [ -d "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
        die "$venv is not empty and no virtual environment. Remove it, or set S6LA_VENV to another folder."
    fi
    mkdir -p "$venv"
    free_gb=$(df -Pk "$venv" | awk 'NR == 2 { print int($4 / 1024 / 1024) }')
    [ "$free_gb" -ge "$needed_gb" ] ||
        die "$venv has $free_gb GB free and needs about $needed_gb GB. Free some, or set S6LA_VENV to another disk."
    python=$(find_python)
    say "creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" ||
        die "$python cannot create a virtual environment. Debian and Ubuntu: apt-get install python3-venv"
}

pip_install() { "$venv/bin/python" -m pip install --disable-pip-version-check -c "$pinned" "$@"; }

mmcv_has_ops() { (cd / && "$venv/bin/python" -c 'import torch, mmcv._ext' 2>/dev/null); }

install_mmcv() {
    if mmcv_has_ops; then return; fi
    say "looking for a prebuilt mmcv wheel (PIP_FIND_LINKS=${PIP_FIND_LINKS:-})"
    if pip_install --no-deps --only-binary :all: --force-reinstall -r "$mmcv" >"$venv/mmcv_wheel.log" 2>&1; then
        if mmcv_has_ops; then
            say "mmcv: the offered wheel works"
            return
        fi
        say "mmcv: the offered wheel has no ops for this torch"
    fi
    check_compiler
    build_mmcv
}

check_compiler() {
    "$venv/bin/python" - <<'PY' || exit 1
import os
import shutil
import sys
import sysconfig

import torch
from torch.utils.cpp_extension import CUDA_HOME

wanted = "[setup] error: mmcv's ops must be compiled here (PIP_FIND_LINKS offers no wheel), and "
compiler = os.environ.get('CXX', 'c++')
if not shutil.which(compiler):
    sys.exit(f"{wanted}there is no C++ compiler '{compiler}'. Debian and Ubuntu: apt-get install build-essential")
if not os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h')):
    sys.exit(f"{wanted}Python's headers are missing. Debian and Ubuntu: apt-get install python3-dev")
if torch.cuda.is_available() and not (CUDA_HOME and os.path.exists(os.path.join(CUDA_HOME, 'bin', 'nvcc'))):
    sys.exit(
        f'{wanted}this machine has a GPU but no nvcc. Install the CUDA toolkit {torch.version.cuda} and set CUDA_HOME, '
        'or compile the CPU ops alone: CUDA_VISIBLE_DEVICES= tools/setup_env.sh'
    )
PY
}

build_mmcv() {
    local build=$venv/mmcv_build log=$venv/mmcv_build.log jobs=${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)}
    local pid compiled total status=0 ending='\n' pause=30
    if [ -t 1 ]; then ending='\r' pause=2; fi
    say "no usable wheel: compiling mmcv's ops with $jobs job(s), log in $log"
    rm -rf "$build"
    mkdir -p "$build"
    set -m # own process group, so that an interrupt ends the compilers too
    # no pip cache: it may hold a wheel of mmcv without ops, or one compiled for another torch
    PATH=$venv/bin:$PATH TMPDIR=$build MMCV_WITH_OPS=1 MAX_JOBS=$jobs CFLAGS="${CFLAGS:-} -g0" \
        pip_install --no-cache-dir --no-build-isolation --no-deps --no-binary mmcv --force-reinstall -r "$mmcv" \
        >"$log" 2>&1 &
    pid=$!
    set +m
    trap 'kill -- -"$pid" 2>/dev/null; exit 130' INT TERM HUP
    SECONDS=0
    while kill -0 "$pid" 2>/dev/null; do
        compiled=$(find "$build" -name '*.o' 2>/dev/null | wc -l)
        total=$(find "$build" -name build.ninja -exec grep -c '^build .*: compile' {} + 2>/dev/null || true)
        printf "[setup] compiling mmcv: %d:%02d min, %d of %s objects$ending" \
            $((SECONDS / 60)) $((SECONDS % 60)) "$compiled" "${total:-?}"
        sleep "$pause" &
        wait $! || true # not a plain sleep: an interrupt would wait for its end
    done
    wait "$pid" || status=$?
    trap - INT TERM HUP
    rm -rf "$build"
    if [ -t 1 ]; then echo; fi
    if [ "$status" -ne 0 ]; then
        tail -n 30 "$log" >&2
        die "compiling mmcv failed: its last lines are above, all in $log. Short of memory: MAX_JOBS=1 $0"
    fi
    mmcv_has_ops || die "the compiled mmcv does not import: $venv/bin/python -c 'import torch, mmcv._ext' says why"
    say "compiled mmcv in $((SECONDS / 60)) min"
}

check_stack() {
    (cd / && "$venv/bin/python" -W ignore - <<'PY') || exit 1
import sys

try:
    import cv2  # noqa: F401
except ImportError as error:
    sys.exit(f'[setup] error: OpenCV does not import ({error}). Debian and Ubuntu: apt-get install libgl1 libglib2.0-0')
import mmcv.ops  # noqa: F401
import mmdet  # noqa: F401
import mmpretrain  # noqa: F401
import mmseg  # noqa: F401
import pkg_resources  # noqa: F401
import torchvision  # noqa: F401
PY
}

# Several clones may share the environment: it must point to this one, whatever the stamp says.
points_here() {
    local origin
    origin=$("$venv/bin/python" -I -c 'from importlib.util import find_spec; print(find_spec("s6la_mm").origin)' \
        2>/dev/null) || return 1
    [ "$origin" = "$root/s6la_mm/__init__.py" ]
}

gpu_is_visible() { [ -n "${CUDA_VISIBLE_DEVICES-all}" ] && compgen -G '/dev/nvidia[0-9]*' >/dev/null; }

# The compiled op lies in the clone, beside the package, and fits one torch and one mmcv.
build_op() {
    local cuda=${S6LA_WITH_CUDA:-} log=$root/build/op.log stamp=$root/build/op_stamp packages sources
    if [ "${S6LA_WITH_OPS:-1}" = 0 ]; then return; fi
    if [ -z "$cuda" ] && [ "${FORCE_CUDA:-0}" = 0 ] && ! gpu_is_visible; then cuda=0; fi
    packages=$(cd "$venv/lib" && echo python3*/site-packages/{torch,*mmcv}-*.dist-info | cksum)
    sources=$(cd "$root" && (find s6la_mm/ops/csrc -type f -print0 | sort -z | xargs -0 cat setup.py build_ops.py &&
        echo "$cuda ${FORCE_CUDA:-} ${TORCH_CUDA_ARCH_LIST:-} ${CUDA_HOME:-}") | cksum)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$packages, $sources" ] && compgen -G "$root/s6la_mm/_ext*.so" >/dev/null; then
        return
    fi
    case $(cat "$stamp" 2>/dev/null) in "$packages,"*) ;; *) rm -rf "$root"/build/temp.* ;; esac
    mkdir -p "$root/build"
    rm -f "$stamp" "$root"/s6la_mm/_ext*.so # one made for a single Python would be taken before the new one
    say "compiling the op, which takes a few minutes; log in $log"
    if ! (cd "$root" && PATH=$venv/bin:$PATH MAX_JOBS=${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)} \
        S6LA_WITH_OPS=1 S6LA_WITH_CUDA=$cuda "$venv/bin/python" setup.py build_ext --inplace >"$log" 2>&1); then
        tail -n 30 "$log" >&2
        die "compiling the op failed: the last lines are above, all in $log. To do without it: S6LA_WITH_OPS=0 $0"
    fi
    (cd / && PYTHONPATH=$root "$venv/bin/python" -W ignore -c \
        'import sys; from s6la_mm.ops import extension; sys.exit(extension.load_error())') ||
        die "the op is compiled and does not load; the reason is above"
    grep -h '^s6la_mm: ' "$log"
    echo "$packages, $sources" >"$stamp"
}

mkdir -p "$(dirname "$venv")"
if command -v flock >/dev/null; then
    exec 9>"$venv.lock"
    flock -n 9 || { say "another process is setting up $venv: waiting" && flock 9; }
fi

stamp=$(cat "$pinned" "$mmcv" | cksum)
if [ "$(cat "$venv/s6la_stamp" 2>/dev/null)" != "$stamp" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    rm -f "$venv/s6la_stamp"
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || create_venv
    "$venv/bin/python" -c "$supported" ||
        die "$venv has $("$venv/bin/python" --version), the stack needs 3.10 to 3.12. Remove it, or set S6LA_VENV."
    say "installing the pinned stack into $venv"
    pip_install -r "$pinned"
    install_mmcv
    check_stack
    echo "$stamp" >"$venv/s6la_stamp"
fi
if ! points_here; then
    say "installing s6la_mm (editable) from $root"
    # without the op, which pip would compile from nothing each time
    S6LA_WITH_OPS=0 S6LA_WITH_CUDA='' FORCE_CUDA='' pip_install --quiet --no-build-isolation --no-deps -e "$root"
fi
build_op
exec 9>&- # another process may go on
say "ready: $venv"
