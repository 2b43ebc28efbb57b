#!/usr/bin/env bash
# MaPLe, cross-dataset, training: [SOURCE] SEED; see scripts/cross_dataset.sh.
CALLED=scripts/maple/xd_train_maple.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../cross_dataset.sh" MaPLe train "$@"
