#!/usr/bin/env bash
# Builds the documentation as a site; a broken link is an error that names it. Neither the build nor the site needs the
# network. dev_env.sh says where its packages go.
#
#   .dev_scripts/docs.sh [FOLDER]   where the site goes (default: site/, which git ignores); open its index.html
set -euo pipefail
site=$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../site}")
source "$(dirname "${BASH_SOURCE[0]}")/dev_env.sh"

export NO_MKDOCS_2_WARNING=1 # Material's notice about a MkDocs that is not installed here
exec mkdocs build --site-dir "$site"
