"""Sets of prompts by name: what they ask, in which words, and what their graders need.

prompt_set     one set, a row on its way to a prompt, the paper's templates
load           a set by its name: deduplicated, shuffled, split
mathematics    deepmath, gsm8k, math500, aime
coding         humaneval, mbpp, opencode (OpenCodeReasoning-2 and what it joins)
instructions   wildchat, ifeval, mt_bench, tinystories, lifebench
pictures       mathvista, onevision
"""

from lenvm_rl.prompts.sets.load import PROMPT_SETS, LoadedPrompts, load_prompt_set, prompt_digest
from lenvm_rl.prompts.sets.prompt_set import TEMPLATES, PromptSet, Row, ask, column_set

__all__ = [
    "PROMPT_SETS",
    "TEMPLATES",
    "LoadedPrompts",
    "PromptSet",
    "Row",
    "ask",
    "column_set",
    "load_prompt_set",
    "prompt_digest",
]
