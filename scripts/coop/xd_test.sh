#!/usr/bin/env bash
# CoOp, cross-dataset, test: DATASET SEED; see scripts/cross_dataset.sh.
CALLED=scripts/coop/xd_test.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../cross_dataset.sh" CoOp test "$@"
