#!/usr/bin/env bash
# Train a policy with a length critic: run.sh NAME overrides..., NAME a YAML of this folder.
set -euo pipefail

RECIPES=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export RECIPES
exec "$RECIPES/../pretrain/run.sh" "$@"
