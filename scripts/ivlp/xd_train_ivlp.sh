#!/usr/bin/env bash
# IVLP, cross-dataset, training: [SOURCE] SEED; see scripts/cross_dataset.sh.
CALLED=scripts/ivlp/xd_train_ivlp.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../cross_dataset.sh" IVLP train "$@"
