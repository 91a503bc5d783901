"""Length value models on any transformers trunk: create, save, load, import, sample."""

from lenvm_rl.model.config import HEADS, LengthValueConfig
from lenvm_rl.model.create import (
    describe_policy,
    from_scratch,
    save_checkpoint,
    to_distribution,
)
from lenvm_rl.model.heads import CandidateHead, ValueHead
from lenvm_rl.model.hub import find_lenvm, find_model, is_lenvm_checkpoint
from lenvm_rl.model.length_value_model import (
    LengthValueModel,
    LengthValueModelForTokenClassification,
)
from lenvm_rl.model.published import import_published
from lenvm_rl.model.tokens import (
    check_tokenizer,
    check_tokenizer_sha,
    load_tokenizer,
    tokenizer_sha,
    tokens_of_another_meaning,
)

__all__ = [
    "HEADS",
    "CandidateHead",
    "LengthValueConfig",
    "LengthValueModel",
    "LengthValueModelForTokenClassification",
    "ValueHead",
    "check_tokenizer",
    "check_tokenizer_sha",
    "describe_policy",
    "find_lenvm",
    "find_model",
    "from_scratch",
    "import_published",
    "is_lenvm_checkpoint",
    "load_tokenizer",
    "save_checkpoint",
    "to_distribution",
    "tokenizer_sha",
    "tokens_of_another_meaning",
]
