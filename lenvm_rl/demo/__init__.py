"""The demo: a small reasoning policy that ships with the package, its task and its training.

`policy_path()` needs nothing but the standard library; the task (`lenvm_rl.demo.task`) likewise.
Building the tokenizer, training and evaluating import transformers and live in their own modules.
"""

from pathlib import Path


def policy_path() -> Path:
    """Directory of the shipped policy: Qwen2 config, safetensors, tokenizer, chat template.

    Any Hugging Face or vLLM loader takes it as a model name.
    """
    return Path(__file__).resolve().parent / "policy"
