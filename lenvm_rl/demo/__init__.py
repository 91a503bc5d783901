"""The demo: a small reasoning policy that ships with the package, its LenVM, its task and its
training.

The paths need nothing but the standard library; the task (`lenvm_rl.demo.task`) likewise.
Building the tokenizer, training and evaluating import transformers and live in their own modules.
"""

from pathlib import Path


def policy_path() -> Path:
    """Directory of the shipped policy: Llama config, safetensors, tokenizer, chat template.

    Any Hugging Face or vLLM loader takes it as a model name.
    """
    return Path(__file__).resolve().parent / "policy"


def lenvm_path() -> Path:
    """Directory of the shipped policy's LenVM: what one run of `lenvm demo` with seed 0 trained."""
    return Path(__file__).resolve().parent / "lenvm"
