#!/usr/bin/env bash
# Pretrain a length value model with verl's critic workers.
#   recipes/pretrain/run.sh demo lenvm.train_rollouts=... lenvm.val_rollouts=... critic.model.path=...
# The first argument is a YAML of this folder (or of $RECIPES); all others are Hydra overrides.
set -euo pipefail

here=${RECIPES:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)}
recipe=${1:?"name a recipe of $here: $(cd "$here" && ls ./*.yaml | tr '\n' ' ')"}
shift

# verl hides a plugin that fails to load; loaded by this name as well, it fails aloud.
export VERL_USE_EXTERNAL_MODULES=${VERL_USE_EXTERNAL_MODULES:-lenvm_rl.verl.plugin}
export HYDRA_FULL_ERROR=1 PYTHONWARNINGS=${PYTHONWARNINGS:-ignore} RAY_USAGE_STATS_ENABLED=0
# Workers import verl before they answer: on a busy machine that takes longer than Ray's minute.
export RAY_worker_register_timeout_seconds=${RAY_worker_register_timeout_seconds:-300}
export TOKENIZERS_PARALLELISM=false WANDB_MODE=${WANDB_MODE:-offline}

# Hydra itself leaves nothing behind: the checkpoint directory is the run's directory.
exec "${PYTHON:-python}" -m verl.trainer.main_ppo --config-path "$here" --config-name "$recipe" \
  hydra.output_subdir=null hydra.run.dir=. hydra/job_logging=stdout "$@"
