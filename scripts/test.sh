#!/usr/bin/env bash
# The whole test suite; sets up everything it needs. Arguments go to pytest: bash scripts/test.sh tests/clip -k tokenizer
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh dev
exec .venv/bin/python -m pytest "$@"
