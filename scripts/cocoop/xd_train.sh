#!/usr/bin/env bash
# CoCoOp, cross-dataset, training: [SOURCE] SEED; see scripts/cross_dataset.sh.
CALLED=scripts/cocoop/xd_train.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../cross_dataset.sh" CoCoOp train "$@"
