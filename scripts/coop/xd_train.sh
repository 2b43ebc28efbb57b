#!/usr/bin/env bash
# CoOp, cross-dataset, training: [SOURCE] SEED; see scripts/cross_dataset.sh.
CALLED=scripts/coop/xd_train.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../cross_dataset.sh" CoOp train "$@"
