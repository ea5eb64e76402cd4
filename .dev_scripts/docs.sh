#!/usr/bin/env bash
# Builds the documentation as a site; a broken link is an error that names it. Installs what it needs (a minute, once) into
# an environment of its own; the build itself needs no network, and neither does the site.
#
#   .dev_scripts/docs.sh [FOLDER]   where the site goes (default: site/, which git ignores); open its index.html
#   S6LA_VENV  its environment lives beside this one, with -docs behind the name (default: .venv-docs in this clone)
#   PYTHON     the interpreter that it is made from (default: python3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${S6LA_VENV:-$PWD/.venv}-docs
stamp=$(cksum <requirements/docs.txt)
if [ "$(cat "$venv/s6la_stamp" 2>/dev/null)" != "$stamp" ]; then
    "${PYTHON:-python3}" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
    echo "$stamp" >"$venv/s6la_stamp"
fi
export NO_MKDOCS_2_WARNING=1 # Material's notice about a MkDocs that is not installed here
PATH=$venv/bin:$PATH exec "$venv/bin/mkdocs" build --site-dir "${1:-site}"
