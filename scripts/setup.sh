#!/usr/bin/env bash
# Install lenvm-rl for development and for the CPU demo: .venv with the exact versions of
# constraints/cpu.txt. Does nothing when that has been done already; --force does it again.
#   scripts/setup.sh            PYTHON=/path/to/python3.11 scripts/setup.sh
# A machine without a GPU saves a large download if PIP_EXTRA_INDEX_URL names PyTorch's CPU index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp=.venv/.lenvm-setup
want=$(cat pyproject.toml constraints/cpu.txt scripts/setup.sh | sha256sum | cut -c1-32)
if [[ "${1:-}" != --force && -f $stamp && "$(head -n1 $stamp)" == "$want" ]]; then
  exit 0
fi

python=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}
if [[ -z $python ]] || ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
  echo "setup: Python 3.11 is needed (constraints/cpu.txt pins its wheels), found:" \
    "${python:-none} $([[ -n $python ]] && "$python" -V 2>&1). Set PYTHON=/path/to/python3.11." >&2
  exit 1
fi

started=$SECONDS
[[ -x .venv/bin/python ]] || "$python" -m venv .venv
pip=(.venv/bin/python -m pip --disable-pip-version-check)
echo "setup: torch"
"${pip[@]}" install -q -c constraints/cpu.txt torch==2.13.0
echo "setup: lenvm-rl with verl (a few minutes on a normal line)"
"${pip[@]}" install -q -c constraints/cpu.txt -e '.[verl,dev]'
"${pip[@]}" check
.venv/bin/python - <<'PY'
import importlib.metadata, lenvm_rl, torch, verl  # noqa: E401 (fails here rather than in a worker)
names = {e.name for e in importlib.metadata.entry_points(group="verl.plugins")}
assert "lenvm_rl" in names, f"verl plugin is not registered, found only {sorted(names)}"
print(f"setup: lenvm-rl {lenvm_rl.__version__}, verl {verl.__version__}, torch {torch.__version__}")
PY
printf '%s\n%s\n' "$want" "$((SECONDS - started))" >$stamp
echo "setup: done in $((SECONDS - started)) s; activate with: source .venv/bin/activate"
