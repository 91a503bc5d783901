"""Directories that names of models stand for: themselves, the demo's LenVM, or one from the Hub.

    runs/demo/checkpoint/lenvm       a directory
    demo                             the LenVM that ships with the package
    ORGANISATION/NAME[@REVISION]     the Hugging Face Hub's, in its cache after the first time

Wherever a LenVM is asked for, in a command, a setting of verl or of vLLM, it is looked up here.
HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN mean what they always do.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_SHIPPED = Path(__file__).resolve().parents[1] / "demo" / "lenvm"
_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
_AGAIN = "Half a download or a copy that broke off looks like this: get the model again."
_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "value_head.bin")


def find_lenvm(name: str | Path, *, option: str = "", **hub: Any) -> Path:
    """Directory of the LenVM that `name` stands for.

    Args:
        name: a directory, `demo`, or a hub id.
        option: where the name was given, for messages, e.g. "--lenvm".
        hub: `revision`, `cache_dir`, `token` of the Hub; a revision in the name goes first.
    Raises:
        ValueError: nothing is there, or something else than a LenVM.
    """
    said = f"{option} {name}".strip()
    path = _SHIPPED if str(name) == "demo" else find_model(name, option=option, **hub)
    kind = model_type(path)
    if kind == "lenvm":
        return path
    if (path / "value_head.safetensors").is_file() or (path / "value_head.bin").is_file():
        raise ValueError(
            f"{said} holds no LenVM of this package, but a checkpoint of the paper's code: convert "
            f"it once, with `lenvm import {name} --out DIR`."
        )
    found = "no config.json" if kind is None else f"a {kind!r} model"
    raise ValueError(
        f"{said} holds no LenVM (config.json with model_type 'lenvm') but {found}: make one from a "
        "language model with `lenvm init --policy`, or name what training wrote, a hub id, "
        "or `demo`."
    )


def find_model(name: str | Path, *, option: str = "", **hub: Any) -> Path:
    """Directory of any model: `name` itself, or its snapshot in the Hub's cache.

    Raises:
        ValueError: no such directory, and no hub id or none that can be had.
    """
    path = Path(name)
    if path.is_dir():
        return path
    said = f"{option} {name}".strip()
    match = _HUB_ID.fullmatch(str(name))
    if match is None:
        raise ValueError(
            f"{said} holds no LenVM or other model: it is no directory, and no id of the Hugging "
            "Face Hub (ORGANISATION/NAME, or ORGANISATION/NAME@REVISION)."
        )
    from huggingface_hub import constants, snapshot_download

    if match["revision"]:
        hub["revision"] = match["revision"]
    if constants.HF_HUB_OFFLINE:  # else a commit hash would be looked up at the Hub all the same
        hub["local_files_only"] = True
    try:
        return Path(snapshot_download(match["id"], allow_patterns=list(_FILES), **hub))
    except (OSError, ValueError) as error:  # the Hub's errors are OSErrors of many kinds
        cache = hub.get("cache_dir") or constants.HF_HUB_CACHE
        offline = " (HF_HUB_OFFLINE is set: only the cache was asked)"
        raise ValueError(
            f"{said} is no directory, so it was looked for on the Hugging Face Hub, where it could "
            f"not be had{offline if constants.HF_HUB_OFFLINE else ''}: {type(error).__name__}: "
            f"{str(error).splitlines()[0]} Its cache is {cache}: download it there where there is "
            f"a network (`hf download {match['id']}`), or name a directory."
        ) from error


def on_every_node(name: str) -> str:
    """`name` as transformers takes it on any machine of a cluster: `demo` is a directory there, a
    hub id stays one."""
    return str(_SHIPPED) if name == "demo" else name


def is_lenvm_checkpoint(path: str | Path) -> bool:
    """True when `path` is a directory whose config.json says model_type "lenvm"."""
    return model_type(path) == "lenvm"


def model_type(path: str | Path) -> str | None:
    """The `model_type` in a directory's config.json; None without one."""
    return (json_file(Path(path) / "config.json") or {}).get("model_type")


def json_file(file: Path) -> dict[str, Any] | None:
    """A configuration's object; None without the file.

    Raises:
        ValueError: half of it, or something else.
    """
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}). {_AGAIN}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no object but {found!r:.40}. {_AGAIN}")
    return found


def check_weights(path: str | Path) -> None:
    """Refuse a directory whose weights are not all there, before anything loads them. What is no
    directory, a hub id, is whole in the Hub's cache or not there.

    Raises:
        ValueError: no weights, a file that an index names and that is missing, or half a file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_dir():
        return
    index = json_file(path / "model.safetensors.index.json") or {}
    files = {path / name for name in index.get("weight_map", {}).values()}
    files = files or {found for kind in _WEIGHTS for found in path.glob(kind)}
    if not files:
        raise ValueError(f"{path} holds no weights (model.safetensors). {_AGAIN}")
    for file in sorted(files):
        if not file.is_file():
            raise ValueError(f"{path} lacks {file.name}, which its index names. {_AGAIN}")
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, "pt"):  # a file must be as long as its header says
                    pass
            except SafetensorError as error:
                raise ValueError(f"{file} is damaged ({error}). {_AGAIN}") from error
