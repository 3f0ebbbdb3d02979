#!/usr/bin/env bash
# Make the training set (4 x 512 volumes) and the validation set (64 volumes) in vol_data/.
#
#   ./gen_data.sh                 all five files; complete ones are left alone, a cut one is made anew
#   ./gen_data.sh --workers 4     arguments go on to each call of generate_3d_data.py
#
# Uses the active environment, else .venv. Stops at the first failure with its exit status.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

python=
for environment in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}" "$root/.venv"; do
    if [ -n "$environment" ] && [ -x "$environment/bin/python" ]; then
        python=$environment/bin/python
        break
    fi
done
if [ -z "$python" ]; then
    echo "gen_data.sh: no environment is active and $root/.venv does not exist: run ./quickstart.sh, or" \
        "make and activate a virtual environment and pip install -r requirements.txt" >&2
    exit 2
fi

# $1: file, $2: number of volumes, $3: seed; the rest goes on to the generator.
generate() {
    "$python" "$root/generate_3d_data.py" --directory "$root/vol_data" \
        --filename "$1" --L "$2" --random_state "$3" "${@:4}"
}

generate vol_train_set1.h5 512 0 "$@"
generate vol_train_set2.h5 512 512 "$@"
generate vol_train_set3.h5 512 1024 "$@"
generate vol_train_set4.h5 512 1536 "$@"
generate vol_val_set.h5 64 9999 "$@"
