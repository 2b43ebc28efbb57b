#!/usr/bin/env bash
# Base-to-new, second part: test what base2new_train.sh trained on the new half of the classes.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -ge 2 ] || usage \
    "usage: [SHOTS=16] [SUB=new] [LOADEP=N] bash scripts/align/base2new_test.sh DATASET SEED [FLAG]... [KEY VALUE]..." \
    "  SUB     half of the classes: new or base (default: new)" \
    "  LOADEP  epoch to load (default: the best on validation data if the training chose it, else the last)" \
    "example: bash scripts/align/base2new_test.sh emoji_groups 1"
DATASET=$1 SEED=$2 SUB=${SUB:-new}
shift 2
number SHOTS "$SHOTS"
number SEED "$SEED"
CFG=$(config_for base2new "$DATASET")
PLACE=$DATASET/shots_$SHOTS/$METHOD/$CFG
[ -z "${LOADEP:-}" ] || set -- --load-epoch "$LOADEP" "$@"
OUT=$RUNS/base2new/test_$SUB/$PLACE${LOADEP:+_epoch_$LOADEP}/seed$SEED \
    exec bash "$RUN" "$METHOD" "$CFG" "$DATASET" "$SEED" \
    --eval-only --model-dir "$RUNS/base2new/train_base/$PLACE/seed$SEED" "$@" \
    DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES "$SUB"
