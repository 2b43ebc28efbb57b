#!/usr/bin/env bash
# ALIGN, or METHOD=NAME, few-shot: DATASET SHOTS SEED; see scripts/few_shot.sh.
CALLED=scripts/align/few_shot.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../few_shot.sh" "${METHOD:-ALIGN}" "$@"
