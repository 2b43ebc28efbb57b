#!/usr/bin/env bash
# ALIGN, or METHOD=NAME, cross-dataset, test: DATASET SEED; see scripts/cross_dataset.sh.
CALLED=scripts/align/cross_dataset_test.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../cross_dataset.sh" "${METHOD:-ALIGN}" test "$@"
