"""How does a long evaluation survive `kill -9`? Its completions are kept as they come.

    generate = kept(generate, "runs/lifebench/completions", identity=...)

Requests are answered in groups; each group's completions are one JSON-lines file, named by a digest
of everything that decides them. Run again, groups that are on disk are read instead of sampled, so
an interrupted run loses at most one group, and a changed setting never meets old completions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.rollouts.atomic import replacing
from lenvm_rl.sampling.transformers.sampler import Completion, Request

Generate = Callable[[Sequence[Request], Sequence[GuidanceSettings | None]], list[Completion]]
"""Samples one completion per request, guided where its settings are not None."""

GROUP = 512  # completions that a kill can cost


def kept(
    generate: Generate, folder: str | Path, *, identity: dict[str, Any], group: int = GROUP
) -> Generate:
    """`generate` that remembers, in `folder`, what it has sampled.

    Args:
        identity: what decides completions besides requests and settings: policy, value model.
        group: completions per file. A group with failed requests ("error") is not kept, so that a
            second run tries them again.
    """
    folder = Path(folder)

    def remembered(
        requests: Sequence[Request], settings: Sequence[GuidanceSettings | None]
    ) -> list[Completion]:
        completions: list[Completion] = []
        for start in range(0, len(requests), group):
            asked = requests[start : start + group]
            guides = settings[start : start + group]
            file = folder / f"{_digest(asked, guides, identity)}.jsonl"
            if file.is_file():
                with file.open() as lines:
                    completions += [Completion(**json.loads(line)) for line in lines]
                continue
            found = generate(asked, guides)
            completions += found
            if any(completion.finish_reason == "error" for completion in found):
                continue
            with replacing(file) as temporary, temporary.open("w") as out:
                out.writelines(json.dumps(asdict(completion)) + "\n" for completion in found)
        return completions

    return remembered


def lenvm_identity(lenvm: str | Path) -> dict[str, Any]:
    """What names a value model's directory and tells its next version from this one."""
    files = sorted(Path(lenvm).glob("*.safetensors"))
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return {"lenvm": str(Path(lenvm).resolve()), "weights": stamps}


def _digest(
    requests: Sequence[Request],
    settings: Sequence[GuidanceSettings | None],
    identity: dict[str, Any],
) -> str:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for request, guide in zip(requests, settings, strict=True):
        asked = {**asdict(request), "prompt_ids": list(request.prompt_ids)}
        guided = None if guide is None else guide.to_args()
        digest.update(json.dumps([asked, guided], sort_keys=True).encode())
    return digest.hexdigest()[:32]
