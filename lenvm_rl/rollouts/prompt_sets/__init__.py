"""Sets of prompts by name: what they ask, which template they ask with, what their graders need.

templates    the paper's prompt templates
rows         rows of the hub, a folder or a file
prompt_set   one set, and how its rows become prompts
catalogue    the known sets
load         a set, loaded: deduplicated, shuffled, split
mathematics, coding, opencode, instructions, lifebench, pictures, column   the sets
"""

from lenvm_rl.rollouts.prompt_sets.catalogue import PROMPT_SETS
from lenvm_rl.rollouts.prompt_sets.load import LoadedPrompts, load_prompt_set
from lenvm_rl.rollouts.prompt_sets.prompt_set import PromptSet

__all__ = ["PROMPT_SETS", "LoadedPrompts", "PromptSet", "load_prompt_set"]
