#!/usr/bin/env bash
# LenVM beside published length rewards on the shipped policy; arguments of scripts/bench_rl.py.
#   recipes/compare/run.sh --reduced
#   recipes/compare/run.sh --methods none,kimi,l1_max,objective --seeds 2
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec "${PYTHON:-python}" "$here/../../scripts/bench_rl.py" "$@"
