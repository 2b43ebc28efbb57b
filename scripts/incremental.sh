#!/usr/bin/env bash
# Incremental learning: train on one set of classes after the other, and test after each step on all sets so far.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
CALLED=${CALLED:-scripts/incremental.sh METHOD}
[ $# -ge 4 ] || usage "usage: bash $CALLED DATASET SHOTS SEED [SETS] [FLAG]... [KEY VALUE]..." \
    "  SETS    into how many sets the classes are divided (default: 3)" \
    "example: bash ${CALLED/METHOD/CoOp} emoji_groups 16 1"
METHOD=$1 DATASET=$2 SHOTS=$3 SEED=$4 SETS=3
shift 4
case ${1:-} in [0-9]*) SETS=$1 && shift ;; esac
check_method "$METHOD"
number SHOTS "$SHOTS"
number SEED "$SEED"
number SETS "$SETS"
[ "$SETS" -ge 2 ] || fail "SETS is '$SETS', expected a number from 2"
CFG=$(config_for "$METHOD" base2new "$DATASET") # one whose prompts fit any class list
PLACE=shots_$SHOTS/$METHOD/$(name_of "$CFG")/seed$SEED

# trained STEP: folder of its training
trained() {
    printf '%s' "$RUNS/incremental/train/$DATASET/set_$1_of_$SETS/$PLACE"
}

# tested STEP NAME CLASSES [FLAG]... [KEY VALUE]...: test what a step has trained
tested() {
    local step=$1 name=$2 classes=$3
    shift 3
    OUT=$RUNS/incremental/test/$DATASET/step_${step}_of_$SETS/$name/$PLACE \
        bash "$RUN" "$METHOD" "$CFG" "$DATASET" "$SEED" --eval-only --model-dir "$(trained "$step")" "$@" \
        DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES "$classes"
}

START=()
for ((STEP = 1; STEP <= SETS; STEP++)); do
    OUT=$(trained "$STEP") bash "$RUN" "$METHOD" "$CFG" "$DATASET" "$SEED" "$@" \
        DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES "$STEP/$SETS" ${START[@]+"${START[@]}"}
    START=(TRAIN.INIT_FROM "$(trained "$STEP")")
    [ "$STEP" -gt 1 ] || continue
    for ((EARLIER = 1; EARLIER < STEP; EARLIER++)); do
        tested "$STEP" "set_$EARLIER" "$EARLIER/$SETS" "$@"
    done
    tested "$STEP" joint "1-$STEP/$SETS" "$@"
done
