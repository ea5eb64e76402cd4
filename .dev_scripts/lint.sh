#!/usr/bin/env bash
# Style and types: ruff, mypy and clang-format, at the versions of requirements/lint.txt. dev_env.sh says where they go.
#
#   .dev_scripts/lint.sh [--fix]   --fix formats, and mends what ruff can mend
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/dev_env.sh"

mapfile -t sources < <(find s6la_mm tests -name '*.h' -o -name '*.hpp' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')
if [ "${1:-}" = --fix ]; then
    ruff check --fix .
    ruff format .
    clang-format -i "${sources[@]}"
else
    ruff check .
    ruff format --check .
    clang-format --dry-run --Werror "${sources[@]}"
fi
mypy
