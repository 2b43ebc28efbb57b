#!/usr/bin/env bash
# Base-to-new: train on the base half of the classes and test on it, then test on the new half.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
CALLED=${CALLED:-scripts/base2new.sh METHOD [train|test]}
METHOD=${1:-}
[ $# -eq 0 ] || shift
PART=both
case ${1:-} in train | test) PART=$1 && shift ;; esac
[ $# -ge 2 ] || usage "usage: [SUB=new] [JOINT=1] [LOADEP=N] bash $CALLED DATASET SEED [FLAG]... [KEY VALUE]..." \
    "  train   only the training, with its test on the base classes" \
    "  test    only the test of what was trained" \
    "  SUB     half of the classes to test: new or base (default: new)" \
    "  JOINT   1: test base and new images among the classes of both, too" \
    "  LOADEP  epoch to test (default: the best on validation data if the training chose it, else the last)" \
    "example: bash $(echo "$CALLED" | sed 's/METHOD \[train|test\]/CoOp/') emoji_groups 1"
DATASET=$1 SEED=$2 SUB=${SUB:-new}
shift 2
check_method "$METHOD"
number SHOTS "$SHOTS"
number SEED "$SEED"
case $SUB in new | base) ;; *) fail "SUB is '$SUB', expected new or base" ;; esac
CFG=$(config_for "$METHOD" base2new "$DATASET")
PLACE=$DATASET/shots_$SHOTS/$METHOD/$(name_of "$CFG")
TRAINED=$RUNS/base2new/train_base/$PLACE/seed$SEED

if [ "$PART" != test ]; then
    OUT=$TRAINED bash "$RUN" "$METHOD" "$CFG" "$DATASET" "$SEED" "$@" \
        DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES base
fi
if [ "$PART" != train ]; then
    [ -z "${LOADEP:-}" ] || set -- --load-epoch "$LOADEP" "$@"
    OUT=$RUNS/base2new/test_$SUB/$PLACE${LOADEP:+_epoch_$LOADEP}/seed$SEED \
        bash "$RUN" "$METHOD" "$CFG" "$DATASET" "$SEED" --eval-only --model-dir "$TRAINED" "$@" \
        DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES "$SUB"
    BASE=$TRAINED
    [ -z "${LOADEP:-}" ] || BASE=$RUNS/base2new/test_base/${PLACE}_epoch_$LOADEP/seed$SEED # the same epoch on the base classes
    NEW=$RUNS/base2new/test_new/$PLACE${LOADEP:+_epoch_$LOADEP}/seed$SEED
    if [ -f "$BASE/result.json" ] && [ -f "$NEW/result.json" ]; then
        awk -v base="$(accuracy "$BASE")" -v new="$(accuracy "$NEW")" \
            'BEGIN { sum = base + new; printf "base %.1f, new %.1f, H %.1f\n", base, new, (sum ? 2 * base * new / sum : 0) }'
    fi
    if [ -n "${JOINT:-}" ]; then
        OUT=$RUNS/base2new/test_joint/$PLACE${LOADEP:+_epoch_$LOADEP}/seed$SEED \
            bash "$RUN" "$METHOD" "$CFG" "$DATASET" "$SEED" --eval-only --model-dir "$TRAINED" "$@" \
            DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES all TEST.JOINT True
    fi
fi
