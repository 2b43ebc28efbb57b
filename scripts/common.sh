# What the scripts of the settings share; sourced, not run.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
RUN=$HERE/run.sh
RUNS=${OUTPUT:-$(cd "$HERE/.." && pwd)/output}
CONFIGS=$HERE/../configs/trainers
SHOTS=${SHOTS:-16}

# usage LINE...: print and stop. A thin script names itself in CALLED, with METHOD or PART already chosen.
usage() {
    printf '%s\n' "$@" "" "environment:" \
        "  CFG     config in configs/trainers/METHOD, or the path of a .yaml file (default: by setting and data set)" \
        "  SHOTS   images per class, unless given as an argument (default: 16)" \
        "  DATA, OUTPUT, PROCESSES, PYTHON: see scripts/run.sh" \
        "METHOD: $(methods)" >&2
    exit 2
}

# methods: those that have a config
methods() {
    ls "$CONFIGS" | sed 's/\.yaml$//' | sort -u | tr '\n' ' '
}

# fail MESSAGE
fail() {
    echo "error: $1" >&2
    exit 2
}

# check_method NAME: stop unless it has a config here, or CFG is a file
check_method() {
    { [ -d "$CONFIGS/$1" ] || [ -f "$CONFIGS/$1.yaml" ]; } && return 0
    case ${CFG:-} in *.yaml) return 0 ;; esac
    fail "METHOD is '$1', expected one of $(methods)(for a trainer of your own give CFG=FILE.yaml)"
}

# number NAME VALUE: stop unless it is one
number() {
    case $2 in
        "" | *[!0-9]*) fail "$1 is '$2', expected a number" ;;
    esac
}

# has_config METHOD NAME: its own file, or a section of the method's file
has_config() {
    [ -f "$CONFIGS/$1/$2.yaml" ] || grep -qs "^$2:" "$CONFIGS/$1.yaml"
}

# config_for METHOD SETTING DATASET: most methods have one config for all settings on the embedded data sets
config_for() {
    if [ -n "${CFG:-}" ]; then
        printf '%s' "$CFG"
        return
    fi
    local name
    case $3 in emoji_* | digits)
        name=emoji_$2
        has_config "$1" "$name" || name=emoji
        printf '%s' "$name"
        return
        ;;
    esac
    for name in "vit_b16_$2" vit_b16 "rn50_$2" rn50; do
        has_config "$1" "$name" && printf '%s' "$name" && return 0
    done
    printf 'vit_b16_%s' "$2" # does not exist: run.sh says so and lists what does
}

# name_of CFG: its part of a folder's name
name_of() {
    basename "$1" .yaml
}

# accuracy FOLDER: of the run in it, in percent
accuracy() {
    sed -n '/^ *"accuracy": /{s/[^0-9.]//gp;q;}' "$1/result.json"
}

# source_for DATASET: what a model that is tested on it was trained on
source_for() {
    case $1 in emoji_* | digits) printf '%s' "${SOURCE:-emoji_groups}" ;; *) printf '%s' "${SOURCE:-imagenet}" ;; esac
}
