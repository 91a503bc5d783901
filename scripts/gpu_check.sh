#!/usr/bin/env bash
# Everything that wants a GPU, in eight minutes, on a machine with torch and transformers:
#   scripts/gpu_check.sh --json gpu.json
# Without a GPU, or with --quick, the same in small shapes. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
if [[ ! -x "$(command -v "$python")" ]]; then python=python3; fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0 WANDB_MODE=offline
exec "$python" -m scripts.gpu_check "$@"
