#!/usr/bin/env bash
# Cross-dataset transfer: train on SOURCE, then test on another data set.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
CALLED=${CALLED:-scripts/cross_dataset.sh METHOD [train|test]}
TARGETS="caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101"
METHOD=${1:-}
[ $# -eq 0 ] || shift
PART=both
case ${1:-} in train | test) PART=$1 && shift ;; esac
WANTED=2
[ "$PART" != train ] || WANTED=1
[ $# -ge $WANTED ] || usage \
    "usage: [SOURCE=imagenet] [LOADEP=N] bash $CALLED DATASET SEED [FLAG]... [KEY VALUE]..." \
    "  DATASET to test on; all: the ten data sets of the papers. With train: the source, which may be left out" \
    "  train   only the training; DOMAIN=NAME trains and tests on this domain of the source alone" \
    "  test    only the test of what was trained" \
    "  SOURCE  data set of the training (default: imagenet; emoji_groups for the embedded data sets)" \
    "  LOADEP  epoch to test (default: the best on validation data if the training chose it, else the last)" \
    "example: bash $(echo "$CALLED" | sed 's/METHOD \[train|test\]/CoOp/') emoji_animals 1"
if [ "$PART" = train ]; then
    case $1 in *[!0-9]*) SOURCE=$1 && shift ;; *) SOURCE=${SOURCE:-imagenet} ;; esac
else
    DATASET=$1 SOURCE=$(source_for "$1")
    shift
fi
SEED=${1:-}
[ $# -eq 0 ] || shift
check_method "$METHOD"
number SHOTS "$SHOTS"
number SEED "$SEED"
[ "$PART" != both ] || [ -z "${DOMAIN:-}" ] || fail "DOMAIN goes with train: see scripts/domain_generalization.sh"

if [ "$PART" != test ]; then
    C=$(config_for "$METHOD" cross_dataset "$SOURCE")
    NAME=$SOURCE${DOMAIN:+_$DOMAIN} DOMAINS=()
    [ -z "${DOMAIN:-}" ] || DOMAINS=(DATASET.SOURCE_DOMAINS "['$DOMAIN']" DATASET.TARGET_DOMAINS "['$DOMAIN']")
    OUT=$RUNS/cross_dataset/train/$NAME/shots_$SHOTS/$METHOD/$(name_of "$C")/seed$SEED \
        bash "$RUN" "$METHOD" "$C" "$SOURCE" "$SEED" "$@" ${DOMAINS[@]+"${DOMAINS[@]}"} DATASET.NUM_SHOTS "$SHOTS"
fi
if [ "$PART" != train ]; then
    [ -z "${LOADEP:-}" ] || set -- --load-epoch "$LOADEP" "$@"
    [ "$DATASET" = all ] || TARGETS=$DATASET
    for TARGET in $TARGETS; do
        C=$(config_for "$METHOD" cross_dataset "$TARGET")
        PLACE=shots_$SHOTS/$METHOD/$(name_of "$C")
        OUT=$RUNS/cross_dataset/test/$TARGET/$PLACE${LOADEP:+_epoch_$LOADEP}/seed$SEED \
            bash "$RUN" "$METHOD" "$C" "$TARGET" "$SEED" \
            --eval-only --model-dir "$RUNS/cross_dataset/train/$SOURCE/$PLACE/seed$SEED" "$@"
    done
fi
