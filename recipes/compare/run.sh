#!/usr/bin/env bash
# LenVM beside published length rewards on the shipped policy; arguments of scripts/bench/rl.py.
#   recipes/compare/run.sh --reduced
#   recipes/compare/run.sh --methods none,kimi,l1_max,objective --seeds 2
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if [[ ! -f $root/scripts/bench/rl.py ]]; then
  echo "compare: the benchmark is a script of the repository, which an installed package does not" \
    "hold: run recipes/compare/run.sh in a clone." >&2
  exit 2
fi
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "${PYTHON:-python}" -m scripts.bench rl "$@"
