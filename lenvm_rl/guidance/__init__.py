"""Valuing candidate next tokens with a LenVM, and guiding a step's logits by the values.

settings     what one request asks for
interface    what a scorer is: slots, histories, logits of candidates
guide        from logits to guided logits
exact/       candidates run through the LenVM, one pass per step
    scorer          the scorer
    trunk, cache    a trunk with keys and values of its rows in slots
    attention       of new tokens and candidates to their slot's prefix
    fixed_step      a step of fixed shape, replayed on CUDA; prefix_kernels for its attention
    memory          what a scorer takes of the device, and whether it is there
heads/       all candidates from one hidden state
    q_head          of the LenVM or of the policy; the scorer that fits a LenVM
    distill         a candidate head learns from the exact values
"""

from lenvm_rl.guidance.guide import Guide, GuidedRow
from lenvm_rl.guidance.interface import CandidateScorer, History, PoolExhausted
from lenvm_rl.guidance.settings import GuidanceSettings

__all__ = [
    "CandidateScorer",
    "GuidanceSettings",
    "Guide",
    "GuidedRow",
    "History",
    "PoolExhausted",
]
