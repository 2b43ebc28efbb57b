#!/usr/bin/env bash
# Cross-dataset transfer and domain generalisation, first part: train on the source, ImageNet by default.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -ge 1 ] || usage \
    "usage: [SHOTS=16] [DOMAIN=NAME] bash scripts/align/cross_dataset_train.sh [SOURCE] SEED [FLAG]... [KEY VALUE]..." \
    "  SOURCE  data set to train on (default: imagenet)" \
    "  DOMAIN  train and test on this domain of it alone" \
    "example: bash scripts/align/cross_dataset_train.sh emoji_groups 1"
SOURCE=imagenet
case $1 in *[!0-9]*) SOURCE=$1 && shift ;; esac
SEED=${1:-}
[ $# -eq 0 ] || shift
number SHOTS "$SHOTS"
number SEED "$SEED"
CFG=$(config_for cross_dataset "$SOURCE")
NAME=$SOURCE${DOMAIN:+_$DOMAIN}
[ -z "${DOMAIN:-}" ] || set -- "$@" DATASET.SOURCE_DOMAINS "['$DOMAIN']" DATASET.TARGET_DOMAINS "['$DOMAIN']"
OUT=$RUNS/cross_dataset/train/$NAME/shots_$SHOTS/$METHOD/$CFG/seed$SEED \
    exec bash "$RUN" "$METHOD" "$CFG" "$SOURCE" "$SEED" "$@" DATASET.NUM_SHOTS "$SHOTS"
