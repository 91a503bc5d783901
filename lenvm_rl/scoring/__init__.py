"""Valuing candidate next tokens with a LenVM, and steering a step's logits with the values.

interface    what a scorer is: slots, histories, logits of candidates
settings     what one request asks for
"""

from lenvm_rl.scoring.interface import CandidateScorer, History, PoolExhausted
from lenvm_rl.scoring.settings import GuidanceSettings

__all__ = ["CandidateScorer", "GuidanceSettings", "History", "PoolExhausted"]
