"""One step of the recipe: the commands that it runs, their seconds, and its result as JSON.

    {"step", "date", "machine", "seed", "seconds", "commands": [{"command", "seconds"}], ...figures}

A user's run writes DIR/results/STEP.json; with --record it is recipes/smollm2/results/STEP.json,
which the README's figures are read from.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from lenvm_rl.guidance.exact.memory import in_units
from lenvm_rl.rollouts.atomic import write_json

RECORDED = Path(__file__).parent / "results"
LENVM = (sys.executable, "-m", "lenvm_rl.cli")


class StepFailed(RuntimeError):
    """A command of a step that ended with another exit status than 0."""


@dataclass
class Step:
    """A step at work."""

    name: str
    """Of its module, and of its result file."""
    dir: Path
    """Where the recipe's files are."""
    record: bool = False
    """Write the result into the recipe's own folder."""
    seed: int = 0
    commands: list[dict[str, Any]] = field(default_factory=list)
    """Command lines that were run, and their seconds."""
    started: float = field(default_factory=time.monotonic)

    def lenvm(self, *words: str | Path, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Run `lenvm WORDS`, shown as it can be copied; returns its figures (its last line).

        Args:
            env: environment variables that it gets besides this process's.
        Raises:
            StepFailed: it did not succeed; its own sentence is on stderr.
        """
        output = self.run(["lenvm", *words], [*LENVM, *words], env=env)
        try:
            return json.loads(output.strip().rpartition("\n")[2])
        except ValueError as error:
            raise StepFailed(f"`lenvm {words[0]}` ended without its line of figures.") from error

    def run(
        self,
        shown: Sequence[str | Path],
        words: Sequence[str | Path] | None = None,
        *,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Run a command; returns what it wrote to stdout, which is shown too.

        Args:
            shown: the command as a user types it.
            words: what is run for it, if something else.
            env: as in `lenvm`.
        Raises:
            StepFailed: another exit status than 0.
        """
        given = [f"{key}={shlex.quote(value)}" for key, value in (env or {}).items()]
        line = " ".join([*given, shlex.join(map(str, shown))])
        print(f"$ {line}", flush=True)
        begun, said = time.monotonic(), ""
        with subprocess.Popen(
            list(map(str, words or shown)),
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        ) as process:
            for text in process.stdout or ():
                print(text, end="", flush=True)
                said += text
        seconds = round(time.monotonic() - begun, 1)
        self.commands.append({"command": line, "seconds": seconds})
        if process.returncode:
            raise StepFailed(f"`{line}` ended with exit status {process.returncode}.")
        print(f"# {seconds} s", flush=True)
        return said

    def save(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """Write the result; returns it."""
        facts = {
            "step": self.name,
            "date": date.today().isoformat(),
            "machine": machine(),
            "seed": self.seed,
            "seconds": round(time.monotonic() - self.started, 1),
            "commands": self.commands,
        }
        place = RECORDED if self.record else self.dir / "results"
        result = {**facts, **figures}
        write_json(place / f"{self.name}.json", result)
        return result


def machine() -> str:
    """Cores and memory of this machine, e.g. "2 CPU cores, 24 GiB"."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{os.cpu_count()} CPU cores, {in_units(memory)}"
