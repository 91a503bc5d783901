#!/usr/bin/env bash
# The main job on a CPU, end to end: install, sample, pretrain, verify, report -> runs/demo.
#   scripts/demo.sh             scripts/demo.sh --out runs/other --seed 1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
before=$(cat .venv/.lenvm-setup 2>/dev/null || true)
scripts/setup.sh
seconds=()
if [[ "$before" != "$(cat .venv/.lenvm-setup)" ]]; then
  seconds=(--setup-seconds "$(tail -n1 .venv/.lenvm-setup)")
fi
exec .venv/bin/lenvm demo "${seconds[@]}" "$@"
