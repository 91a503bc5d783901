r"""With which words is a question asked? The paper's templates, byte for byte.

LenVMs of the paper are trained on prompts in these words, one user message without a system
message. `{}` of `\boxed{}` is part of the text, so templates are filled by `ask`, not by format.
"""

from __future__ import annotations

from typing import Any

PLACE = "{prompt}"

_CODE = (
    "Please solve the programming task below in {language} step by step and then provide the "
    "complete solution in a single {language} code block.\n\n{prompt}"
)

TEMPLATES: dict[str, str] = {
    "math": "Please reason step by step, and put your final answer within \\boxed{}.\n\n{prompt}",
    "instructions": "Please follow the instructions below.\n\n{prompt}",
    "python": _CODE.replace("{language}", "Python"),
    "cpp": _CODE.replace("{language}", "C++"),
    "open": "Please reason step by step, and provide your final answer at the end.\n\n{prompt}",
    "plain": "{prompt}",
}


def ask(template: str, text: str) -> list[dict[str, Any]]:
    """One user message: `text` in the words of a template.

    Args:
        template: a name of `TEMPLATES`, or words of one's own with `{prompt}` in them.
    Raises:
        ValueError: neither.
    """
    words = TEMPLATES.get(template, template)
    if PLACE not in words:
        raise ValueError(
            f"template {template!r}: give one of {', '.join(TEMPLATES)}, or words with {PLACE} "
            "where the prompt stands."
        )
    return [{"role": "user", "content": words.replace(PLACE, text)}]
