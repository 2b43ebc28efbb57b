#!/usr/bin/env bash
# One run: bash scripts/run.sh METHOD CONFIG DATASET SEED [FLAG]... [KEY VALUE]...
# Started again it continues, and a run that is done is not repeated. All other scripts only choose its arguments.
set -euo pipefail

usage() {
    cat >&2 <<TEXT
usage: bash scripts/run.sh METHOD CONFIG DATASET SEED [FLAG]... [KEY VALUE]...

  METHOD    trainer, such as ALIGN: a folder of configs/trainers
  CONFIG    a file of configs/trainers/METHOD without .yaml, or the path of a .yaml file
  DATASET   a file of configs/datasets without .yaml, or the path of a .yaml file
  SEED      0 or more
  FLAG      flags of train.py, such as --eval-only --model-dir DIR
  KEY VALUE config keys, such as DATASET.NUM_SHOTS 16

environment:
  DATA      folder that holds the data sets (default: data)
  OUTPUT    folder for all runs (default: output)
  OUT       folder of this run (default: OUTPUT/run/DATASET/shots_K[_base|_new]/METHOD/CONFIG/seedSEED)
  PROCESSES number of processes on this machine (default: 1)
  PYTHON    Python to use (default: .venv/bin/python if it exists, else python)

example: bash scripts/run.sh CoOp emoji emoji_groups 1 DATASET.NUM_SHOTS 4
TEXT
    exit 2
}

[ $# -ge 4 ] || usage
METHOD=$1 CONFIG=$2 DATASET=$3 SEED=$4
shift 4

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# yaml_of FOLDER NAME: the file, or an error that lists what there is
yaml_of() {
    local file="$ROOT/$1/$2.yaml"
    case $2 in *.yaml) file=$2 ;; esac
    if [ ! -f "$file" ]; then
        echo "error: there is no config $file" >&2
        local known=""
        [ -d "$ROOT/$1" ] && known=$(cd "$ROOT/$1" && ls | sed -n 's/\.yaml$//p' | tr '\n' ' ')
        echo "  $1 has: ${known:-nothing}" >&2
        exit 2
    fi
    printf '%s' "$file"
}

CONFIG_FILE=$(yaml_of "configs/trainers/$METHOD" "$CONFIG")
DATASET_FILE=$(yaml_of "configs/datasets" "$DATASET")
CONFIG=$(basename "$CONFIG" .yaml)
DATASET=$(basename "$DATASET" .yaml)

if [ -z "${OUT:-}" ]; then
    SHOTS=shots_all PART=""
    KEY=""
    for ITEM in "$@"; do
        case $KEY in
            DATASET.NUM_SHOTS) SHOTS=shots_$ITEM ;;
            DATASET.SUBSAMPLE_CLASSES) [ "$ITEM" = all ] || PART=_$ITEM ;;
        esac
        KEY=$ITEM
    done
    OUT=${OUTPUT:-$ROOT/output}/run/$DATASET/$SHOTS$PART/$METHOD/$CONFIG/seed$SEED
fi

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    [ -x "$ROOT/.venv/bin/python" ] && PYTHON=$ROOT/.venv/bin/python
fi
set -- "$ROOT/train.py" --root "${DATA:-$ROOT/data}" --seed "$SEED" --trainer "$METHOD" \
    --dataset-config-file "$DATASET_FILE" --config-file "$CONFIG_FILE" --output-dir "$OUT" "$@"
if [ "${PROCESSES:-1}" -gt 1 ]; then
    set -- -m torch.distributed.run --standalone --nproc_per_node "$PROCESSES" "$@"
fi
exec "$PYTHON" "$@"
