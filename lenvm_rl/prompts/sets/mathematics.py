"""Mathematics: questions with one answer, asked for in a box.

The ground truth is the answer alone; graders: `gsm8k` (numbers) and `math` (formulas).
"""

from __future__ import annotations

from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.prompts.sets.prompt_set import PromptSet, Row
from lenvm_rl.prompts.sets.templates import ask

MARK = "####"
_GRADED = "the answer, which the grader needs"


def deepmath_prompt(row: Row) -> Prompt:
    """A question of DeepMath-103K."""
    return Prompt(
        prompt_id=row.id("deepmath"),
        messages=ask("math", row.text("question")),
        data_source="math/deepmath",
        ground_truth=row.truth("final_answer", why=_GRADED),
        extra=row.kept("difficulty", "topic"),
    )


def gsm8k_prompt(row: Row) -> Prompt:
    """A word problem of GSM8K; the truth is what stands after the solution's `####`."""
    solution = str(row.need("answer", why="the solution with the answer that the grader needs"))
    _, mark, answer = solution.rpartition(MARK)
    if not mark or not answer.strip():
        raise ValueError(f"{row.where}: no {MARK} and answer at the end of {solution[-60:]!r}.")
    return Prompt(
        prompt_id=row.id("gsm8k"),
        messages=ask("math", row.text("question")),
        data_source="gsm8k",
        ground_truth=answer.strip(),
    )


def math500_prompt(row: Row) -> Prompt:
    """A problem of MATH500."""
    return Prompt(
        prompt_id=row.id("math500", "unique_id"),
        messages=ask("math", row.text("problem")),
        data_source="math/math500",
        ground_truth=row.truth("answer", why=_GRADED),
        extra=row.kept("subject", "level"),
    )


def aime_prompt(row: Row) -> Prompt:
    """A problem of AIME; hub copies differ in how they write the columns' names."""
    return Prompt(
        prompt_id=row.id("aime", "ID", "id"),
        messages=ask("math", row.text("Problem", "problem", "question")),
        data_source="math/aime",
        ground_truth=row.truth("Answer", "answer", why=_GRADED),
        extra=row.kept("year", "Year"),
    )


DEEPMATH = PromptSet(
    name="deepmath",
    about="DeepMath-103K, the paper's mathematics",
    hub="zwhe99/DeepMath-103K",
    split="train",
    columns=("question", "final_answer"),
    fields=("difficulty", "topic"),
    truth="final answer",
    template="math",
    licence="MIT",
    drop=("r1_solution_1", "r1_solution_2", "r1_solution_3"),
    build=deepmath_prompt,
)
GSM8K = PromptSet(
    name="gsm8k",
    about="school word problems (train 7,473, test 1,319)",
    hub="openai/gsm8k",
    config="main",
    split="test",
    columns=("question", "answer"),
    truth="number after ####",
    template="math",
    licence="MIT",
    build=gsm8k_prompt,
)
MATH500 = PromptSet(
    name="math500",
    about="500 competition problems of MATH's test split",
    hub="HuggingFaceH4/MATH-500",
    split="test",
    columns=("problem", "answer"),
    fields=("subject", "level"),
    truth="answer, LaTeX",
    template="math",
    licence="MIT (MATH)",
    build=math500_prompt,
)
AIME = PromptSet(
    name="aime",
    about="AIME 2024 and 2025",
    hub="GY2233/AIME-2024-2025",
    split="train",
    columns=("Problem", "Answer"),
    fields=("year",),
    truth="number from 0 to 999",
    template="math",
    licence="problems by the MAA; see the source",
    build=aime_prompt,
)
