#!/usr/bin/env bash
# Install if needed, then lint, types and all tests: those with real workers too (--fast leaves
# them out). Further arguments go to pytest:  scripts/test.sh --fast -k length_terms
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
fast=false
if [[ "${1:-}" == --fast ]]; then fast=true; shift; fi
browser=()
if ! $fast; then browser=(--browser); fi
scripts/setup.sh --vllm "${browser[@]}"

export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0 WANDB_MODE=offline
# One thread each: what is tested is small, and threads that wait for one another on a busy machine
# make the same tests five to ten times slower. OMP_NUM_THREADS=2 scripts/test.sh takes two.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyright
# Fast tests are shared by two processes (TEST_PROCESSES), each of one thread; a process takes over
# half of what the other has left, so that fixtures of a file are seldom made twice.
.venv/bin/python -m pytest -n "${TEST_PROCESSES:-2}" --dist worksteal --durations=10 "$@"
if ! $fast; then
  .venv/bin/python -m pytest -m slow --durations=10 "$@"
  if [[ $# == 0 ]]; then # once more on the model runner that GPUs get; one process per engine
    for file in guided_llm pooling policy_states; do
      scripts/v2_on_cpu.sh "tests/vllm/test_$file.py" -m slow
    done
  fi
fi
