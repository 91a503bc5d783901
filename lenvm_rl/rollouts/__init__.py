"""Rollout files: completions with their token ids, written atomically and read as streams.

record, columns      one row, its checks, its content digest
writer, reader       Parquet shards
stream               shuffled epochs for training, exact resume
split, duplicates    by prompt content
report, histogram    lengths, share cut, suggested gamma
convert_*            from the reference's JSONL, plain text JSONL and verl's dumps
"""

from lenvm_rl.rollouts.reader import RolloutReader
from lenvm_rl.rollouts.record import FINISH_REASONS, SCHEMA, Rollout
from lenvm_rl.rollouts.report import LengthReport, Lengths, length_report
from lenvm_rl.rollouts.report_view import plot_lengths, report_table
from lenvm_rl.rollouts.stream import RolloutStream
from lenvm_rl.rollouts.writer import RolloutWriter

__all__ = [
    "FINISH_REASONS",
    "SCHEMA",
    "LengthReport",
    "Lengths",
    "Rollout",
    "RolloutReader",
    "RolloutStream",
    "RolloutWriter",
    "length_report",
    "plot_lengths",
    "report_table",
]
