#!/usr/bin/env bash
# IVLP, base-to-new, test: DATASET SEED; see scripts/base2new.sh.
CALLED=scripts/ivlp/base2new_test_ivlp.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../base2new.sh" IVLP test "$@"
