#!/usr/bin/env bash
# Makes the environment of a stack of docs/environments.md; one that is there is used. Run it, or source it from another
# script, which then has $stack, $venv, ${named[@]} (the distributions that tell the stack apart) and these functions.
#
#   .dev_scripts/stack_env.sh A|B|C|D
#   S6LA_STACKS     where the environments live, by the hash of their pins (default: the user's cache)
#   PYTHON          the interpreter they are made from (default: python3.11)
#   PIP_FIND_LINKS  a wheel of mmcv that lies there is used, else its ops are compiled, about 20 minutes on two cores
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stack=${1:-}
originals=(mmengine==0.10.7 mmdet==3.3.0 mmsegmentation==1.2.2 mmpretrain==1.2.0 ftfy regex importlib_metadata)
older=(numpy==1.26.4 opencv-python==4.10.0.84 setuptools==69.5.1 "${originals[@]}")
tests=(wheel ninja pytest pytest-xdist timm safetensors onnx==1.23.2 onnxruntime==1.32.0 onnxscript==0.7.2)
mmcv=mmcv==2.1.0
named=(torch numpy mmcv mmdet)
case $stack in
    A) pins=(torch==2.1.2 torchvision==0.16.2 "${older[@]}") ;;
    B) pins=(-r requirements/pinned.txt) ;;
    C) pins=(torch==2.4.1 torchvision==0.19.1 "${older[@]}") mmcv=mmcv==2.2.0 ;;
    D)
        pins=(torch===2.13.0 torchvision==0.28.0 'numpy>=2,<3' 'setuptools<82' ftfy regex importlib_metadata
            onedl-mmengine==0.10.12 onedl-mmdetection==3.5.1 onedl-mmsegmentation==1.4.2 onedl-mmpretrain==1.3.6)
        mmcv=onedl-mmcv==2.3.6
        named=(torch numpy onedl-mmcv onedl-mmdetection)
        ;;
    *)
        echo "error: '$stack' is no stack: there are A, B, C and D (docs/environments.md)" >&2
        exit 2
        ;;
esac

hash=$( (echo "${pins[@]}" "${tests[@]}" "$mmcv" && case $stack in B) cat requirements/pinned.txt ;; esac) |
    sha256sum | cut -c 1-12)
venv=${S6LA_STACKS:-${XDG_CACHE_HOME:-$HOME/.cache}/s6la_mm}/stack-$stack-$hash
pip() { "$venv/bin/python" -m pip --disable-pip-version-check -q "$@"; }
say() { printf '[stack %s] %s\n' "$stack" "$*"; }

mkdir -p "$(dirname "$venv")"
exec 9>"$venv.lock"
flock 9
if ! "$venv/bin/python" -c 'import torch, mmcv._ext' 2>/dev/null; then
    say "making $venv"
    "${PYTHON:-python3.11}" -m venv "$venv"
    pip install "${pins[@]}" "${tests[@]}"
    PATH=$venv/bin:$PATH MMCV_WITH_OPS=1 CFLAGS="${CFLAGS:-} -g0" pip install --no-build-isolation --no-deps --no-cache-dir "$mmcv"
fi
if [ "$stack" = C ]; then # the two bounds, as `import s6la_mm` says
    packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    sed -i "s/^\(mmcv_maximum_version\) = .*/\1 = '2.3.0'/" "$packages/mmdet/__init__.py"
    sed -i "s/^\(MMCV_MAX\) = .*/\1 = '2.3.0'/" "$packages/mmseg/__init__.py"
fi
exec 9>&-

# FOLDER: the files of this clone in a new folder, without what has been built here, for another stack perhaps.
copy_files() { git ls-files -z --cached --others --exclude-standard | tar c --null -T - | tar x --one-top-level="$1"; }
