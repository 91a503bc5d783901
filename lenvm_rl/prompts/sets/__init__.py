"""Sets of prompts by name: what they ask, in which words, and what their graders need.

templates      the paper's prompt templates
rows           rows of the hub, a folder or a file
prompt_set     one set, and a row on its way to a prompt
load           a set, loaded: deduplicated, shuffled, split
mathematics    deepmath, gsm8k, math500, aime
coding         humaneval, mbpp
opencode       opencode (OpenCodeReasoning-2 and what it joins)
instructions   wildchat, ifeval, mt_bench
lifebench      lifebench
pictures       mathvista, onevision
column         any data set with a column of prompts
"""

from lenvm_rl.prompts.sets.catalogue import PROMPT_SETS
from lenvm_rl.prompts.sets.column import column_set
from lenvm_rl.prompts.sets.load import LoadedPrompts, load_prompt_set, prompt_digest
from lenvm_rl.prompts.sets.prompt_set import PromptSet, Row
from lenvm_rl.prompts.sets.templates import TEMPLATES, ask

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
