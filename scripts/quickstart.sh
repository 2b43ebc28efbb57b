#!/usr/bin/env bash
# Five methods side by side on drawings of people, with the small embedded CLIP, 4 shots, 3 to 5 seeds (recipes/quickstart.yaml).
# Sets up everything it needs; finished runs are used again. Results: output/quickstart/; DATA and OUTPUT name other folders.
#   bash scripts/quickstart.sh                                all five
#   METHODS="ZeroshotCLIP CoOp" bash scripts/quickstart.sh    some of them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

known=(ZeroshotCLIP ALIGN MaPLe CoOpLAMM CoOp)
methods=()
for method in ${METHODS-${known[*]}}; do
  case " ${known[*]} " in
    *" $method "*) ;;
    *) echo "error: METHODS names '$method', expected some of ${known[*]}" >&2; exit 2 ;;
  esac
  case " ${methods[*]-} " in *" $method "*) ;; *) methods+=("$method") ;; esac
done
if [ ${#methods[@]} -eq 0 ]; then echo "error: METHODS is empty, expected some of ${known[*]}" >&2; exit 2; fi

folder=${OUTPUT:-output}/quickstart
mkdir -p "$folder"

# state: what the summary was made of
state() {
  echo "${methods[*]}"
  cat recipes/quickstart.yaml configs/datasets/emoji_people_third.yaml | cksum
  find "$folder" -name DONE | sort | cksum
}

# counted LOG: lines of the installation go to the file LOG; those about packages are shown, all in one line of a terminal
counted() {
  local n=0 line
  while IFS= read -r line; do
    echo "$line" >> "$1"
    case $line in *Collecting* | *Downloading* | *"Installing collected"*) ;; *) continue ;; esac
    n=$((n + 1))
    if [ -t 2 ]; then
      printf '\r%-79.79s' "  $n: $line" >&2
    elif [ $((n % 50)) = 1 ]; then
      echo "  $n: ${line:0:70}" >&2
    fi
  done
  if [ -t 2 ] && [ "$n" -gt 0 ]; then echo >&2; fi
}

if [ -f "$folder/state.txt" ] && [ "$(cat "$folder/state.txt")" = "$(state)" ]; then
  cat "$folder/summary.txt"
  exit 0
fi

echo "Five methods on drawings of people; the full logs are in $folder" >&2
log=$folder/install.log
if ! bash scripts/setup.sh 2>&1 | counted "$log"; then
  tail -n 15 "$log" >&2
  exit 1
fi
export PYTHONUNBUFFERED=1 # a line for every run when it is done
only=$(IFS=,; echo "method=${methods[*]}")
.venv/bin/python sweep.py recipes/quickstart.yaml --root "${DATA:-data}" --output "$folder" --jobs 2 --only "$only"
.venv/bin/python -m tools.quickstart "$folder" "${methods[@]}" | tee "$folder/summary.txt"
state > "$folder/state.txt"
