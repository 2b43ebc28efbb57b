#!/usr/bin/env bash
# Makes .venv and installs what is missing; does nothing when the requirements have not changed.
#   bash scripts/setup.sh          what a run needs (requirements.txt)
#   bash scripts/setup.sh dev      also what tests and checks need (requirements-dev.txt)
# PYTHON chooses the interpreter (default python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kind=${1:-run}
case "$kind" in
  run) files=(requirements.txt) ;;
  dev) files=(requirements.txt requirements-dev.txt) ;;
  *) echo "usage: bash scripts/setup.sh [run|dev]" >&2; exit 2 ;;
esac

python=${PYTHON:-python3}
if [ ! -x .venv/bin/python ]; then
  "$python" -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed, found " + sys.version.split()[0])'
  echo "Creating .venv ..." >&2
  "$python" -m venv .venv
fi

stamp=.venv/installed-$kind
wanted=$(cat "${files[@]}" | cksum)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
  echo "Installing ${files[*]} into .venv (the first time this downloads PyTorch; with CUDA .venv grows to 6 to 7 GB) ..." >&2
  if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "${files[-1]}" >&2; then
    free=$(df -Pk .venv | awk 'NR == 2 {printf "%.1f GB", $4 / 1e6}')
    echo "error: pip could not install ${files[*]} (its message is above), expected a package index that can be reached and up to 7 GB for .venv, found $free free in $PWD; mend it and run the same command again" >&2
    exit 1
  fi
  echo "$wanted" > "$stamp"
  if [ "$kind" = dev ]; then cksum < requirements.txt > .venv/installed-run; fi
fi
