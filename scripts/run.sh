#!/usr/bin/env bash
# One run: bash scripts/run.sh METHOD CONFIG DATASET SEED [FLAG]... [KEY VALUE]...
# Started again it continues, and a run that is done is not repeated. All other scripts only choose its arguments.
set -euo pipefail

usage() {
    cat >&2 <<TEXT
usage: bash scripts/run.sh METHOD CONFIG DATASET SEED [FLAG]... [KEY VALUE]...

  METHOD    trainer, such as ALIGN: a file of configs/trainers
  CONFIG    a section of configs/trainers/METHOD.yaml, or the path of a .yaml file
  DATASET   a data set, such as emoji_groups, caltech101 or folder, or the path of a .yaml file
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

# path_of FOLDER NAME: of a config, which may also be a section of FOLDER.yaml or the name of a registered data set
path_of() {
    case $2 in *.yaml) printf '%s' "$2" ;; *) printf '%s' "$ROOT/$1/$2.yaml" ;; esac
}

CONFIG_FILE=$(path_of "configs/trainers/$METHOD" "$CONFIG")
if [ ! -f "$CONFIG_FILE" ] && [ ! -d "$ROOT/configs/trainers/$METHOD" ] && [ ! -f "$ROOT/configs/trainers/$METHOD.yaml" ]; then
    KNOWN=$(ls "$ROOT/configs/trainers" | sed 's/\.yaml$//' | sort -u | tr '\n' ' ')
    echo "error: METHOD is '$METHOD', expected one of $KNOWN(for a trainer of your own give CONFIG as FILE.yaml)" >&2
    exit 2
fi
if [ ! -f "$CONFIG_FILE" ] && ! grep -qs "^$CONFIG:" "$ROOT/configs/trainers/$METHOD.yaml"; then
    KNOWN=$(cd "$ROOT/configs/trainers" && { ls "$METHOD"; sed -n 's/^\([A-Za-z0-9].*\):.*/\1/p' "$METHOD.yaml"; } 2>/dev/null | sed 's/\.yaml$//' | tr '\n' ' ') || true
    echo "error: there is no config $CONFIG_FILE" >&2
    echo "  configs/trainers/$METHOD has: ${KNOWN:-nothing}" >&2
    exit 2
fi
DATASET_FILE=$(path_of "configs/datasets" "$DATASET")
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
