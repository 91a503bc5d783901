"""Completions that are there already as rollout files: one loop, a parser per kind of source."""

from lenvm_rl.rollouts.convert.lines import BadRow, ConversionReport
from lenvm_rl.rollouts.convert.sources import convert_reference, convert_text, convert_verl

__all__ = ["BadRow", "ConversionReport", "convert_reference", "convert_text", "convert_verl"]
