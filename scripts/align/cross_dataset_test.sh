#!/usr/bin/env bash
# Cross-dataset transfer, second part: test what cross_dataset_train.sh trained on another data set.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -ge 2 ] || usage \
    "usage: [SOURCE=imagenet] [SHOTS=16] [LOADEP=N] bash scripts/align/cross_dataset_test.sh DATASET SEED [FLAG]... [KEY VALUE]..." \
    "  SOURCE  data set of the training (default: imagenet; emoji_groups for the embedded data sets)" \
    "  LOADEP  epoch to load (default: the best on validation data if the training chose it, else the last)" \
    "example: bash scripts/align/cross_dataset_test.sh emoji_animals 1"
DATASET=$1 SEED=$2
shift 2
number SHOTS "$SHOTS"
number SEED "$SEED"
case $DATASET in
    emoji_* | digits) SOURCE=${SOURCE:-emoji_groups} ;;
    *) SOURCE=${SOURCE:-imagenet} ;;
esac
CFG=$(config_for cross_dataset "$DATASET")
PLACE=shots_$SHOTS/$METHOD/$CFG
[ -z "${LOADEP:-}" ] || set -- --load-epoch "$LOADEP" "$@"
OUT=$RUNS/cross_dataset/test/$DATASET/$PLACE${LOADEP:+_epoch_$LOADEP}/seed$SEED \
    exec bash "$RUN" "$METHOD" "$CFG" "$DATASET" "$SEED" \
    --eval-only --model-dir "$RUNS/cross_dataset/train/$SOURCE/$PLACE/seed$SEED" "$@"
