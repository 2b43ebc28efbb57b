#!/usr/bin/env bash
# VPT, cross-dataset, training: [SOURCE] SEED; see scripts/cross_dataset.sh.
CALLED=scripts/vpt/xd_train_vpt.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../cross_dataset.sh" VPT train "$@"
