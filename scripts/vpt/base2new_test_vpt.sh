#!/usr/bin/env bash
# VPT, base-to-new, test: DATASET SEED; see scripts/base2new.sh.
CALLED=scripts/vpt/base2new_test_vpt.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../base2new.sh" VPT test "$@"
