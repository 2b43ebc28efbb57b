#!/usr/bin/env bash
# CoCoOp, cross-dataset, test: DATASET SEED; see scripts/cross_dataset.sh.
CALLED=scripts/cocoop/xd_test.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../cross_dataset.sh" CoCoOp test "$@"
