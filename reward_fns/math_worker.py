r"""The process that compares formulas for `math_answer`: one JSON line in, one out.

    {"expected": "1/2", "given": "0.5"}  ->  {"equal": true}

It says {"ready": true} once math-verify is imported, and ends when its input does. Not meant to be
imported: run as a script.
"""

from __future__ import annotations

import json
import os
import resource
import sys

MEMORY = 4 * 1024**3  # bytes of address space: 9**9**9 must not take the machine down
PARSE_SECONDS = COMPARE_SECONDS = 4


def main() -> None:
    """Serve comparisons until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    kinds = (LatexExtractionConfig(), ExprExtractionConfig())

    def equal(expected: str, given: str) -> bool:
        parsed = [
            parse(rf"\boxed{{{formula}}}", kinds, parsing_timeout=PARSE_SECONDS)
            for formula in (expected, given)
        ]
        return all(parsed) and bool(verify(*parsed, timeout_seconds=COMPARE_SECONDS))

    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            right = equal(request["expected"], request["given"])
        except (MemoryError, RecursionError):
            right = False
        print(json.dumps({"equal": right}), file=answers, flush=True)


if __name__ == "__main__":
    main()
