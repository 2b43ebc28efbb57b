#!/usr/bin/env bash
# CoOp trained on ImageNet by main.sh (16 shots, 16 vectors, name at the end), tested elsewhere: DATASET CFG, seeds 1 2 3.
. "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
[ $# -ge 2 ] || usage "usage: [SOURCE=imagenet] [SEEDS=\"1 2 3\"] bash scripts/coop/eval.sh DATASET CFG [FLAG]... [KEY VALUE]..."
DATASET=$1 CFG=$2
shift 2
KIND=$(name_of "$CFG")_nctx16_cscFalse_ctpend
for SEED in ${SEEDS:-1 2 3}; do
    OUT=$RUNS/cross_dataset/test/$DATASET/shots_16/CoOp/$KIND/seed$SEED \
        bash "$RUN" CoOp "$CFG" "$DATASET" "$SEED" \
        --eval-only --model-dir "$RUNS/few_shot/${SOURCE:-imagenet}/shots_16/CoOp/$KIND/seed$SEED" "$@" \
        TRAINER.COOP.N_CTX 16 TRAINER.COOP.CSC False TRAINER.COOP.CLASS_TOKEN_POSITION end
done
