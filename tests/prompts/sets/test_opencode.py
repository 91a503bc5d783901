"""OpenCodeReasoning-2: tasks joined from the four benchmarks by data set, split and row."""

import datasets
import huggingface_hub
import pytest

from lenvm_rl.prompts.sets import ask, load_prompt_set
from lenvm_rl.prompts.sets.coding import task_text
from tests.prompts.sets.files import lines, without

FORCES = {
    "description": "Add.",
    "input_format": "Two numbers.",
    "output_format": "Their sum.",
    "examples": [{"input": "1 2", "output": "3"}, {"input": "2 2", "output": "4"}],
    "note": "Mind the sign.",
}
FORCES_TEXT = (
    "Add.\n\nInput\n\nTwo numbers.\n\nOutput\n\nTheir sum.\n\nExamples\n\nInput\n\n1 2\n\nOutput"
    "\n\n3\n\nInput\n\n2 2\n\nOutput\n\n4\n\nNote\n\nMind the sign."
)


def row(dataset, split, index, question="-"):
    return {
        "question": question,
        "dataset": dataset,
        "split": split,
        "index": str(index),
        "question_id": f"{dataset}{index}",
        "difficulty": "EASY",
        "r1_generation": "long",
    }


ROWS = [
    row("taco", "train", 1),
    row("taco", "train", 1),
    row("apps", "test", 0),
    row("code_contests", "train", 0),
    row("code_contests", "train", 1),
    row("open-r1/codeforces", "train", 0),
    row("taco", "train", 9, question="Filled in."),
]


@pytest.fixture
def folder(tmp_path):
    lines(tmp_path / "python.jsonl", ROWS)
    lines(tmp_path / "cpp.jsonl", ROWS[:1])
    lines(tmp_path / "taco" / "train.jsonl", [{"question": "T0"}, {"question": "T1"}])
    lines(tmp_path / "apps" / "test.jsonl.gz", [{"question": "A0"}])
    contests = [{"description": "C0"}, {"description": ""}]
    lines(tmp_path / "code_contests" / "train.jsonl", contests)
    lines(tmp_path / "codeforces" / "train.jsonl", [FORCES])
    return tmp_path


def test_tasks_are_joined_and_asked_once(folder):
    loaded = load_prompt_set("opencode", source=folder)
    texts = ["T1", "A0", "C0", FORCES_TEXT, "Filled in."]
    assert [p.messages for p in loaded.prompts] == [ask("python", text) for text in texts]
    assert (loaded.duplicates, loaded.filtered) == (1, 1)  # C1 has no text
    assert loaded.prompts[0].extra == without({**ROWS[0]}, "question", "r1_generation")
    assert {p.data_source for p in loaded.prompts} == {"opencode/python"}


def test_the_split_is_the_language(folder):
    loaded = load_prompt_set("opencode", source=folder, split="cpp")
    assert loaded.prompts[0].messages == ask("cpp", "T1")
    with pytest.raises(ValueError, match="splits are python and cpp, not 'train'"):
        load_prompt_set("opencode", source=folder / "cpp.jsonl", split="train")


@pytest.mark.parametrize(
    ("absent", "text"),
    [
        ((), FORCES_TEXT),
        (("note",), FORCES_TEXT.partition("\n\nNote")[0]),
        (("note", "examples"), FORCES_TEXT.partition("\n\nExamples")[0]),
        (("note", "examples", "input_format"), "Add.\n\nOutput\n\nTheir sum."),
        (("description",), None),
    ],
)
def test_codeforces_tasks_are_put_together_from_their_parts(absent, text):
    assert task_text("open-r1/codeforces", {**FORCES, **dict.fromkeys(absent)}) == text


def test_joins_that_fail_are_said(folder, monkeypatch):
    def failing(one):
        return load_prompt_set("opencode", source=lines(folder / "python.jsonl", [one]))

    with pytest.raises(ValueError, match="taco, split train, has 2 rows but no 2"):
        failing(row("taco", "train", 2))
    with pytest.raises(ValueError, match="unknown benchmark 'leetcode': known are taco, apps"):
        failing(row("leetcode", "train", 0))
    with pytest.raises(ValueError, match="no column 'index'"):
        failing(without(row("taco", "train", 0), "index"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (folder / "codeforces").rename(folder / "elsewhere")
    with pytest.raises(ValueError, match="copies in taco, apps, code_contests, codeforces.*reach"):
        failing({**row("open-r1/codeforces", "other", 0)})
