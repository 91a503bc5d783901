"""Rollout files: completions with their token ids, written atomically and read as streams.

record, columns      one row, its rules, its content digest
files, media         shards, row groups and metadata; pictures, each stored once
writer, reader       to disk and back
stream               shuffled epochs for training, exact resume
parts, duplicates    splits, subsets and correct answers; by prompt content
segments             the thinking, or the answer, of every response
report, lengths      percentiles, share truncated, suggested gamma
convert              from plain text JSONL, the reference's JSONL and verl's dumps
text, ends           prompts and responses as token ids, by one rule
"""

from lenvm_rl.rollouts.convert import (
    BadRow,
    ConversionReport,
    convert_reference,
    convert_text,
    convert_verl,
)
from lenvm_rl.rollouts.duplicates import DuplicateReport, find_duplicates
from lenvm_rl.rollouts.parts import (
    CorrectReport,
    SplitReport,
    keep_correct,
    shared_prompts,
    split_by_prompt,
)
from lenvm_rl.rollouts.reader import RolloutReader
from lenvm_rl.rollouts.record import FINISH_REASONS, SCHEMA, Rollout
from lenvm_rl.rollouts.report import (
    LengthReport,
    Lengths,
    length_report,
    plot_lengths,
    report_table,
)
from lenvm_rl.rollouts.segments import ThinkTags, keep_segment
from lenvm_rl.rollouts.stream import RolloutStream
from lenvm_rl.rollouts.text import TextCodec
from lenvm_rl.rollouts.writer import RolloutWriter

__all__ = [
    "FINISH_REASONS",
    "SCHEMA",
    "BadRow",
    "ConversionReport",
    "DuplicateReport",
    "LengthReport",
    "Lengths",
    "CorrectReport",
    "Rollout",
    "RolloutReader",
    "RolloutStream",
    "RolloutWriter",
    "SplitReport",
    "TextCodec",
    "convert_reference",
    "convert_text",
    "convert_verl",
    "find_duplicates",
    "keep_correct",
    "keep_segment",
    "ThinkTags",
    "length_report",
    "plot_lengths",
    "report_table",
    "shared_prompts",
    "split_by_prompt",
]
