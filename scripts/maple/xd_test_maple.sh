#!/usr/bin/env bash
# MaPLe, cross-dataset, test: DATASET SEED; see scripts/cross_dataset.sh.
CALLED=scripts/maple/xd_test_maple.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../cross_dataset.sh" MaPLe test "$@"
