#!/usr/bin/env bash
# ALIGN, or METHOD=NAME, cross-dataset, training: [SOURCE] SEED; see scripts/cross_dataset.sh.
CALLED=scripts/align/cross_dataset_train.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../cross_dataset.sh" "${METHOD:-ALIGN}" train "$@"
