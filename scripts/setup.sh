#!/usr/bin/env bash
# Makes .venv and installs what is missing; does nothing when the requirements have not changed.
#   bash scripts/setup.sh          what a run needs (requirements.txt)
#   bash scripts/setup.sh dev      also what tests and checks need (requirements-dev.txt)
#   bash scripts/setup.sh dense    also what segmentation, detection and LLaVA need (requirements-dense.txt)
# PYTHON chooses the interpreter (default python3). TORCH=cpu or TORCH=cuda chooses the build of PyTorch: without it, Linux
# without an NVIDIA driver gets the CPU build, from TORCH_INDEX if that can be reached; all else is what pip finds by itself.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kind=${1:-run}
case "$kind" in
  run) files=(requirements.txt) ;;
  dev) files=(requirements.txt requirements-dev.txt) ;;
  dense) files=(requirements.txt requirements-dense.txt) ;;
  *) echo "usage: bash scripts/setup.sh [run|dev|dense]" >&2; exit 2 ;;
esac

python=${PYTHON:-python3}
index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
build=${TORCH:-}
case "$build" in
  cpu | cuda) ;;
  "") if [ "$(uname -s)" != Linux ] || [ -e /proc/driver/nvidia ] || [ -e /dev/dxg ] || command -v nvidia-smi > /dev/null; then
        build=cuda
      else
        build=cpu
      fi ;;
  *) echo "error: TORCH is '$build', expected cpu or cuda" >&2; exit 2 ;;
esac
if [ ! -x .venv/bin/python ]; then
  "$python" -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed, found " + sys.version.split()[0])'
  echo "Creating .venv ..." >&2
  "$python" -m venv .venv
fi

stamp=.venv/installed-$kind
wanted=$(cat "${files[@]}" | cksum)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
  install() {
    .venv/bin/python -m pip install --disable-pip-version-check "$@" >&2 && return
    free=$(df -Pk .venv | awk 'NR == 2 {printf "%.1f GB", $4 / 1e6}')
    echo "error: pip could not install ${files[*]} (its message is above), expected a package index that can be reached and up to 7 GB for .venv, found $free free in $PWD; fix this and run the same command again" >&2
    exit 1
  }
  echo "Installing ${files[*]} into .venv; the first time this takes minutes, because PyTorch is large ..." >&2
  if [ "$build" = cpu ] && [ "$(uname -s)" = Linux ] && ! ls -d .venv/lib*/python*/site-packages/torch > /dev/null 2>&1; then
    if timeout 10 "$python" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' "$index/" 2> /dev/null; then
      echo "The CPU build of PyTorch comes from $index (TORCH=cuda takes the one for NVIDIA GPUs) ..." >&2
      mapfile -t torch < <(grep '^torch' requirements.txt)
      install --index-url "$index" "${torch[@]}"
    else
      echo "The CPU build of PyTorch would come from $index, which cannot be reached: pip takes its usual one, with which .venv grows to 6 to 7 GB ..." >&2
    fi
  fi
  install -r "${files[-1]}"
  echo "$wanted" > "$stamp"
  if [ "$kind" = dev ]; then cksum < requirements.txt > .venv/installed-run; fi
fi
