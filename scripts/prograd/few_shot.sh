#!/usr/bin/env bash
# ProGrad, few-shot: DATASET SHOTS SEED; see scripts/few_shot.sh.
CALLED=scripts/prograd/few_shot.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../few_shot.sh" ProGrad "$@"
