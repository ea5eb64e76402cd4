# Sourced by docs.sh and lint.sh: puts what they run on PATH, from an environment of their own without torch, which it
# makes in half a minute when requirements/ asks for other versions.
#
#   S6LA_VENV  that environment lives beside this one, with -dev behind the name (default: .venv-dev in this clone)
#   PYTHON     the interpreter that it is made from (default: python3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dev=${S6LA_VENV:-$PWD/.venv}-dev
stamp=$(cat requirements/docs.txt requirements/lint.txt | cksum)
if [ "$(cat "$dev/s6la_stamp" 2>/dev/null)" != "$stamp" ]; then
    "${PYTHON:-python3}" -m venv --clear "$dev"
    "$dev/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt -r requirements/lint.txt
    echo "$stamp" >"$dev/s6la_stamp"
fi
PATH=$dev/bin:$PATH
