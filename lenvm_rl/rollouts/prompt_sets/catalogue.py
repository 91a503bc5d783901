"""Which prompt sets are known by name?"""

from lenvm_rl.rollouts.prompt_sets.lifebench import LIFEBENCH
from lenvm_rl.rollouts.prompt_sets.prompt_set import PromptSet

PROMPT_SETS: dict[str, PromptSet] = {one.name: one for one in (LIFEBENCH,)}
