#!/usr/bin/env bash
# Few-shot classification: train on SHOTS images per class of DATASET and test on all classes.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
CALLED=${CALLED:-scripts/few_shot.sh METHOD}
[ $# -ge 4 ] || usage "usage: bash $CALLED DATASET SHOTS SEED [FLAG]... [KEY VALUE]..." \
    "example: bash ${CALLED/METHOD/CoOp} emoji_groups 4 1"
METHOD=$1 DATASET=$2 SHOTS=$3 SEED=$4
shift 4
check_method "$METHOD"
number SHOTS "$SHOTS"
number SEED "$SEED"
CFG=$(config_for "$METHOD" few_shot "$DATASET")
OUT=$RUNS/few_shot/$DATASET/shots_$SHOTS/$METHOD/$(name_of "$CFG")/seed$SEED \
    exec bash "$RUN" "$METHOD" "$CFG" "$DATASET" "$SEED" "$@" DATASET.NUM_SHOTS "$SHOTS"
