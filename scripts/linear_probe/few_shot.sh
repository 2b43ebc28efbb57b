#!/usr/bin/env bash
# LinearProbe, few-shot: DATASET SHOTS SEED; see scripts/few_shot.sh.
CALLED=scripts/linear_probe/few_shot.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../few_shot.sh" LinearProbe "$@"
