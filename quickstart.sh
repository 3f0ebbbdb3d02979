#!/usr/bin/env bash
# From a fresh clone to a picture of columns that a network found in volumes it has never seen:
#
#   ./quickstart.sh
#
# Makes .venv (reused when there), simulates a small data set, trains a small 3D U-Net on it,
# segments volumes of another seed, and names the pictures. A few minutes on two cores after the
# installation. Everything goes to ./quickstart; run again, it keeps the data and trains anew.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source=.ci/environment.sh
. "$root/.ci/environment.sh"

case "${1:-}" in
"") ;;
-h | --help)
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"
    exit 0
    ;;
*) stop "takes no arguments, got $*; the scripts that it calls have flags of their own" ;;
esac

readonly DATA=quickstart/data LOGS=quickstart/logs TITLE=unet3d
# Larger columns, in smaller and cleaner volumes than the defaults of generate_3d_data.py.
readonly VOLUMES=(
    --L_xy 80 --L_z 80 --lattice_low 4 --lattice_high 6 --min_columns 30
    --gain_low 60 --gain_high 100 --contrast_low 1.0 --contrast_high 1.0 --background_high 0.001
    --std_intensity_range_low 0.2 --std_intensity_range_high 0.4
)
readonly TRAINING=(
    --recipe fast --patch_size 48 --patches_per_epoch 400 --epochs 14 --num_workers 0
)

# Simulate file $1 of $2 volumes with seed $3; a complete file is kept.
generate() {
    "$PYTHON" generate_3d_data.py --directory "$DATA" --filename "$1" --L "$2" \
        --random_state "$3" "${VOLUMES[@]}"
}

# Print the scores of validation and evaluation beside the baseline.
report() {
    "$PYTHON" - "$LOGS/$TITLE" <<'PYTHON_END'
import json
import sys
from pathlib import Path

log = Path(sys.argv[1])
epochs = json.loads((log / "logs.json").read_text())["epochs"]
scores = json.loads((log / "evaluation" / "summary.json").read_text())["scores"]
best = max(epochs, key=lambda epoch: epoch["valid_iou"])
print(f"validation IoU            {best['valid_iou']:.2f}  (patches, epoch {best['epoch']})")
print(f"IoU on unseen volumes     {scores['iou']['mean']:.2f}  (whole volumes of another seed)")
print(f"baseline on the same      {scores['baseline_iou']['mean']:.2f}  (a mask of the whole sheet)")
PYTHON_END
}

prepare_environment "$root" requirements.txt
cd "$root"
mkdir -p "$DATA"

echo "== 1/3 Simulating volumes to train on, to validate on, and to test on"
if [ "$(cat "$DATA/volumes" 2>/dev/null)" != "${VOLUMES[*]}" ]; then
    rm -f "$DATA"/*.h5 # of other settings: from an older version of this script
    echo "${VOLUMES[*]}" >"$DATA/volumes"
fi
generate train.h5 128 0
generate validation.h5 12 9999
generate unseen.h5 8 4242

echo "== 2/3 Training a 3D U-Net"
rm -rf "${LOGS:?}/$TITLE"
"$PYTHON" train_basic_3dunet.py --data_dir "$DATA" --train_files train.h5 \
    --val_files validation.h5 --log_path "$LOGS" --experiment_title "$TITLE" "${TRAINING[@]}"

echo "== 3/3 Segmenting volumes that it has never seen"
"$PYTHON" evaluate.py --checkpoint "$LOGS/$TITLE" --data "$DATA/unseen.h5"

echo
echo "Done in $((SECONDS / 60)) min $((SECONDS % 60)) s. Pictures:"
echo "  $LOGS/$TITLE/evaluation/predictions.png   columns found in unseen volumes"
echo "  $LOGS/$TITLE/learning_curves.png          how the training went"
report
