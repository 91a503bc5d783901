"""The command line, called inside the test's process."""

import contextlib
import io
import json
from dataclasses import dataclass

from lenvm_rl import cli


@dataclass(frozen=True)
class Ran:
    """What a command left."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def figures(self):
        """The object on the last line."""
        return json.loads(self.stdout.strip().splitlines()[-1])


def invoke(*words):
    """Run `lenvm WORDS`; mistakes are raised, as `cli.call` does."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.call([str(word) for word in words])
        except SystemExit as end:
            status = end.code or 0
    return Ran(status, out.getvalue(), err.getvalue())


def run(*words):
    """Exit status zero, and the object on the last line."""
    ran = invoke(*words)
    assert ran.exit_code == 0, ran.stdout + ran.stderr
    return ran.figures
