#!/usr/bin/env bash
# Run all tests in .venv, made or brought up to date first. Arguments go on to pytest:
#   ./run_tests.sh                      all tests
#   ./run_tests.sh tests/models -k unet   a few of them
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source=.ci/environment.sh
. "$root/.ci/environment.sh"

prepare_environment "$root" requirements.txt requirements-dev.txt
cd "$root"
exec "$PYTHON" -m pytest "$@"
