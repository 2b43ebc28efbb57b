#!/usr/bin/env bash
# The whole test suite, a process for each core, the longest files first; sets up everything it needs. Arguments go to pytest, which then runs in
# one process: bash scripts/test.sh tests/clip -k tokenizer
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh dev
[ $# -gt 0 ] || set -- --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
exec .venv/bin/python -m pytest "$@"
