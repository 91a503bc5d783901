"""Registration with vLLM of the LenVM architecture, as a pooling model.

And, on a CPU and if asked to, linear layers whose weights can be replaced (`internals`).

vLLM calls `register` in every one of its processes, whatever model is served. So it imports no
model code, and a failure is logged as an error, but never stops a server of something else: if
the LenVM is what is served, vLLM says by itself that the architecture is unknown.
"""

from __future__ import annotations

import logging

logger = logging.getLogger("vllm.lenvm_rl")

ARCHITECTURE = "LengthValueModelForTokenClassification"
_POOLING_MODEL = "lenvm_rl.vllm.pooling:LengthValuePoolingModel"


def register() -> None:
    """Make vLLM know model_type "lenvm" and its architecture; any number of times."""
    try:
        # The import registers the configuration with transformers, which vLLM asks for it.
        from vllm import ModelRegistry

        import lenvm_rl.model  # noqa: F401
        from lenvm_rl.vllm.internals import keep_plain_weights

        keep_plain_weights()
        ModelRegistry.register_model(ARCHITECTURE, _POOLING_MODEL)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        logger.error(
            "lenvm_rl could not register its pooling model with vLLM, so a LenVM cannot be served "
            "(other models can): %s: %s",
            type(error).__name__,
            error,
        )
