"""Which prompt sets are known by name?"""

from lenvm_rl.prompts.sets.coding import HUMANEVAL, MBPP
from lenvm_rl.prompts.sets.instructions import IFEVAL, MT_BENCH, WILDCHAT
from lenvm_rl.prompts.sets.lifebench import LIFEBENCH
from lenvm_rl.prompts.sets.mathematics import AIME, DEEPMATH, GSM8K, MATH500
from lenvm_rl.prompts.sets.opencode import OPENCODE
from lenvm_rl.prompts.sets.pictures import MATHVISTA, ONEVISION
from lenvm_rl.prompts.sets.prompt_set import PromptSet

# The paper's training sets first.
_KNOWN = (
    DEEPMATH,
    WILDCHAT,
    OPENCODE,
    ONEVISION,
    GSM8K,
    MATH500,
    AIME,
    HUMANEVAL,
    MBPP,
    IFEVAL,
    MT_BENCH,
    LIFEBENCH,
    MATHVISTA,
)
PROMPT_SETS: dict[str, PromptSet] = {one.name: one for one in _KNOWN}
