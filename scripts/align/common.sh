# What the scripts of this folder share; sourced, not run. METHOD=NAME runs another method than ALIGN.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
RUN=$HERE/../run.sh
RUNS=${OUTPUT:-$(cd "$HERE/../.." && pwd)/output}
METHOD=${METHOD:-ALIGN}
SHOTS=${SHOTS:-16}

# usage LINE...: print and stop
usage() {
    printf '%s\n' "$@" "" "environment:" \
        "  METHOD  trainer (default: ALIGN)" \
        "  CFG     config in configs/trainers/METHOD (default: by setting and data set)" \
        "  DATA, OUTPUT, PROCESSES, PYTHON: see scripts/run.sh" >&2
    exit 2
}

# config_for SETTING DATASET: the embedded data sets have one config for all settings
config_for() {
    case $2 in
        emoji_* | digits) printf '%s' "${CFG:-emoji}" ;;
        *) printf '%s' "${CFG:-vit_b16_$1}" ;;
    esac
}

# number NAME VALUE: stop unless it is one
number() {
    case $2 in
        "" | *[!0-9]*) echo "error: $1 is '$2', expected a number" >&2 && exit 2 ;;
    esac
}
