#!/usr/bin/env bash
# IVLP, cross-dataset, test: DATASET SEED; see scripts/cross_dataset.sh.
CALLED=scripts/ivlp/xd_test_ivlp.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../cross_dataset.sh" IVLP test "$@"
