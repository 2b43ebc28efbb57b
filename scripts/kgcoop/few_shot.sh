#!/usr/bin/env bash
# KgCoOp, few-shot: DATASET SHOTS SEED; see scripts/few_shot.sh.
CALLED=scripts/kgcoop/few_shot.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../few_shot.sh" KgCoOp "$@"
