#!/usr/bin/env bash
# Run tests on vLLM's V2 model runner, for real, on a CPU. vLLM takes V2 wherever triton exists; here
# triton's interpreter runs its kernels (slow, exact), behind a stand-in for a GPU backend.
#   scripts/v2_on_cpu.sh tests/vllm/test_guided_llm.py -m slow      PYTHON=other/bin/python scripts/...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
triton=3.9.0
site=$PWD/.venv/triton-interpreter-$triton

if [[ ! -f $site/done ]]; then
  echo "v2_on_cpu: triton $triton for its interpreter" >&2
  rm -rf "$site"
  mkdir -p "$site"
  wheels=$(mktemp -d)
  trap 'rm -rf "$wheels"' EXIT
  "$python" -m pip download -q --no-deps -d "$wheels" "triton==$triton"
  "$python" - "$wheels" "$site" <<'PY'
import re
import sys
import zipfile
from pathlib import Path

wheels, site = map(Path, sys.argv[1:])
left_out = re.compile(r"triton/(backends/(amd|nvidia)/|profiler/)")  # a gigabyte that only GPUs run
with zipfile.ZipFile(next(wheels.glob("triton-*.whl"))) as wheel:
    wheel.extractall(site, [name for name in wheel.namelist() if not left_out.match(name)])


def change(file: str, old: str, new: str) -> None:
    text = (site / file).read_text()
    assert old in text, f"triton changed: no {old!r} in {file}"
    (site / file).write_text(text.replace(old, new))


found = "backends: dict[str, Backend] = _discover_backends()"
change("triton/backends/__init__.py", found, "backends: dict[str, Backend] = {}")
with (site / "triton/backends/__init__.py").open("a") as file:
    file.write('''

class _Interpreted(DriverBase):
    def __init__(self):
        pass

    @classmethod
    def is_active(cls):
        return True

    def map_python_to_cpp_type(self, ty):
        return ty

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cpu", 0, 1)

    def get_active_torch_device(self):
        import torch

        return torch.device("cpu")

    def get_current_device(self):
        return 0

    def get_current_stream(self, *_):
        return 0

    def get_device_interface(self):
        import torch

        return torch.cpu

    def get_benchmarker(self):
        raise RuntimeError("the interpreter has nothing to tune")


backends = {"cpu": Backend(None, _Interpreted)}
''')
# vLLM's grammar kernel stores under an integer mask, which the interpreter does not take.
stored = "_interpreter.store(ptrs.data, value.data, mask.data)\n"
boolean = stored.replace("mask.data", "mask.data.astype(bool)")
change("triton/runtime/interpreter.py", stored, boolean)
PY
  touch "$site/done"
fi
export TRITON_INTERPRET=1 VLLM_USE_V2_MODEL_RUNNER=1 OMP_NUM_THREADS=1
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m pytest "$@"
