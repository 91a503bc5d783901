"""vLLM edge: length guidance inside vLLM, and a LenVM served as a vLLM pooling model.

    processor     LengthGuidance, the logits processor of vLLM's V1 and V2 model runners
    options       where it finds its LenVM, and what is refused before the engine starts
    plugin        registers the pooling model with vLLM (entry point `vllm.general_plugins`)
    pooling       the pooling model: any vLLM trunk under the value head, raw logits per token
    values        from pooling outputs to values, horizons and lengths
    sample        engines of `lenvm sample` that are made for their tasks, guided or not
    room          what a run, its policy and its LenVM need in an engine, before it starts
    offline       the engine in this process, which is kept full
    ray_engine    engines on many nodes, through Ray Data
    serve         the command line of a guided server
    refusals      requests that are refused before they are scheduled, or ask in the wrong place
    internals     where this package reaches into vLLM: hidden states, flash attention, CPU weights

The processor is named by its class path, `--logits-processors lenvm_rl.vllm:LengthGuidance`. It is
not an entry point on purpose: vLLM gives a processor loaded by entry point no output tokens under
async scheduling, and refuses to start its newer runner beside one.

| vLLM          | V1 runner         | V2 runner                                                |
|---------------|-------------------|----------------------------------------------------------|
| 0.28 .. 0.30  | yes               | vLLM itself falls back to V1 when a processor is named   |
| 0.31 .. 0.32  | tested, real runs | tested on a CPU, through Triton's interpreter            |

Importing this package imports nothing; its modules need the extra `vllm`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lenvm_rl.vllm.processor import LengthGuidance

__all__ = ["LengthGuidance"]


def __getattr__(name: str) -> Any:
    if name == "LengthGuidance":
        from lenvm_rl.vllm.processor import LengthGuidance

        return LengthGuidance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
