#!/usr/bin/env bash
# Base-to-new, first part: train on the base half of the classes and test on it. SHOTS images per class, 16 by default.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -ge 2 ] || usage "usage: [SHOTS=16] bash scripts/align/base2new_train.sh DATASET SEED [FLAG]... [KEY VALUE]..." \
    "example: bash scripts/align/base2new_train.sh emoji_groups 1"
DATASET=$1 SEED=$2
shift 2
number SHOTS "$SHOTS"
number SEED "$SEED"
CFG=$(config_for base2new "$DATASET")
OUT=$RUNS/base2new/train_base/$DATASET/shots_$SHOTS/$METHOD/$CFG/seed$SEED \
    exec bash "$RUN" "$METHOD" "$CFG" "$DATASET" "$SEED" "$@" \
    DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES base
