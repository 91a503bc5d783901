"""Valuing candidate next tokens with a LenVM, and steering a step's logits with the values.

interface    what a scorer is: slots, histories, logits of candidates
settings     what one request asks for
rows, batch  what is known of a request in one step, and of all of them as tensors
trunk        a LenVM's trunk with keys and values of its rows in slots
memory       what a scorer takes of the device, and whether it is there
histories    how the slots catch up with their rows
exact        candidates run through the LenVM, one pass per step
fixed_step   a step of fixed shape, prefix_kernels for its attention, graphs to replay it on CUDA
q_head       all candidates from one hidden state, of the LenVM or of the policy
distill      a candidate head learns from the exact values (distill_states: at which states)
guide        from logits to guided logits
"""

from lenvm_rl.guidance.guide import Guide
from lenvm_rl.guidance.interface import CandidateScorer, History, PoolExhausted
from lenvm_rl.guidance.rows import GuidedRow
from lenvm_rl.guidance.settings import GuidanceSettings

__all__ = [
    "CandidateScorer",
    "GuidanceSettings",
    "Guide",
    "GuidedRow",
    "History",
    "PoolExhausted",
]
