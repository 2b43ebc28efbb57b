#!/usr/bin/env bash
# ALIGN, or METHOD=NAME, domain generalisation, test: TARGET SEED; see scripts/domain_generalization.sh.
CALLED=scripts/align/domain_generalization.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../domain_generalization.sh" "${METHOD:-ALIGN}" test "$@"
