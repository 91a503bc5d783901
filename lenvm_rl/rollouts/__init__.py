"""Rollout files: completions with their token ids, written atomically and read as streams.

record, columns      one row, its checks, its content digest
writer, reader       Parquet shards
media                pictures, each stored once
stream               shuffled epochs for training, exact resume
split, duplicates    by prompt content
right_rows           the right answers alone
report, histogram    lengths, share cut, suggested gamma
convert_*            from the reference's JSONL, plain text JSONL and verl's dumps
row_files, truth     rows of any file, and what graders compare with as JSON
"""

from lenvm_rl.rollouts.convert import BadRow, ConversionReport
from lenvm_rl.rollouts.convert_reference import convert_reference
from lenvm_rl.rollouts.convert_text import convert_text
from lenvm_rl.rollouts.convert_verl import convert_verl
from lenvm_rl.rollouts.correct_rows import CorrectReport, keep_correct
from lenvm_rl.rollouts.duplicates import DuplicateReport, find_duplicates
from lenvm_rl.rollouts.reader import RolloutReader
from lenvm_rl.rollouts.record import FINISH_REASONS, SCHEMA, Rollout
from lenvm_rl.rollouts.report import LengthReport, Lengths, length_report
from lenvm_rl.rollouts.report_view import plot_lengths, report_table
from lenvm_rl.rollouts.split import SplitReport, shared_prompts, split_by_prompt
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
    "length_report",
    "plot_lengths",
    "report_table",
    "shared_prompts",
    "split_by_prompt",
]
