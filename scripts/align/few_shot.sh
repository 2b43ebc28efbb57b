#!/usr/bin/env bash
# Few-shot classification: train on SHOTS images per class of DATASET and test on all classes.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -ge 3 ] || usage "usage: bash scripts/align/few_shot.sh DATASET SHOTS SEED [FLAG]... [KEY VALUE]..." \
    "example: bash scripts/align/few_shot.sh emoji_groups 4 1"
DATASET=$1 SHOTS=$2 SEED=$3
shift 3
number SHOTS "$SHOTS"
number SEED "$SEED"
CFG=$(config_for few_shot "$DATASET")
OUT=$RUNS/few_shot/$DATASET/shots_$SHOTS/$METHOD/$CFG/seed$SEED \
    exec bash "$RUN" "$METHOD" "$CFG" "$DATASET" "$SEED" "$@" DATASET.NUM_SHOTS "$SHOTS"
