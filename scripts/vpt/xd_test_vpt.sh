#!/usr/bin/env bash
# VPT, cross-dataset, test: DATASET SEED; see scripts/cross_dataset.sh.
CALLED=scripts/vpt/xd_test_vpt.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../cross_dataset.sh" VPT test "$@"
