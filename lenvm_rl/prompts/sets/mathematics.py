"""Mathematics: questions with one answer, asked for in a box.

The ground truth is the answer alone; graders: `gsm8k` (numbers) and `math` (formulas).
"""

from __future__ import annotations

from functools import partial

from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.prompts.sets.prompt_set import PromptSet, Row, ask, question_set

MARK = "####"
_problems = partial(question_set, why="the answer, which the grader needs", template="math")


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


DEEPMATH = _problems(
    "question",
    "final_answer",
    data_source="math/deepmath",
    extra=("difficulty", "topic"),
    name="deepmath",
    about="DeepMath-103K, the paper's mathematics",
    hub="zwhe99/DeepMath-103K",
    split="train",
    holds="final answer",
    licence="MIT",
    drop=("r1_solution_1", "r1_solution_2", "r1_solution_3"),
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
MATH500 = _problems(
    "problem",
    "answer",
    ids=("unique_id",),
    data_source="math/math500",
    extra=("subject", "level"),
    name="math500",
    about="500 competition problems of MATH's test split",
    hub="HuggingFaceH4/MATH-500",
    split="test",
    holds="answer, LaTeX",
    licence="MIT (MATH)",
)
AIME = _problems(  # copies on the hub differ in how they write the columns' names
    ("Problem", "problem", "question"),
    ("Answer", "answer"),
    ids=("ID", "id"),
    data_source="math/aime",
    extra=("year", "Year"),
    fields=("year",),
    name="aime",
    about="AIME 2024 and 2025",
    hub="GY2233/AIME-2024-2025",
    split="train",
    holds="number from 0 to 999",
    licence="problems by the MAA; see the source",
)
