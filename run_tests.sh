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
if [ $# -eq 0 ]; then
    # Several processes share all tests. Threads of networks as small as theirs would only wait.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    set -- --numprocesses logical --maxprocesses 4 --dist worksteal
fi
exec "$PYTHON" -m pytest "$@"
