"""Names of sets on the command line: what they stand for, and what they refuse."""

import pytest

from lenvm_rl.demo.prompts import resolve_prompts
from lenvm_rl.prompts.sets import ask
from lenvm_rl.prompts.sets.load import parse_set_name
from tests.prompts.sets.files import lines


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("gsm8k", ("gsm8k", None, None, None)),
        ("gsm8k:5", ("gsm8k", None, None, 5)),
        ("gsm8k@hub", ("gsm8k", None, "hub", None)),
        ("gsm8k/train@some/folder:30", ("gsm8k", "train", "some/folder", 30)),
        ("gsm8k@x/test.jsonl.gz", ("gsm8k", None, "x/test.jsonl.gz", None)),
        ("gsm8k@odd:name:7", ("gsm8k", None, "odd:name", 7)),
        ("gsm8k@a@b", ("gsm8k", None, "a@b", None)),
        ("column=q@f.jsonl:9", ("column", None, "f.jsonl", 9)),
        ("column=q,a/dev@owner/name", ("column", "dev", "owner/name", None)),
    ],
)
def test_names(text, meaning):
    found = parse_set_name(text)
    assert (found.chosen.name, found.split, found.source, found.count) == meaning


@pytest.mark.parametrize("text", ["demo:3", "x.jsonl", "gsm9k@hub", "some/gsm8k", "gsm8k.jsonl"])
def test_other_things_are_no_names_of_sets(text):
    assert parse_set_name(text) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gsm8k:folder", r"write SET\[/SPLIT\]\[@SOURCE\]\[:COUNT\], e.g. gsm8k@DIR:100"),
        ("gsm8k:0", "positive number"),
        ("gsm8k@", "cannot be read"),
        ("gsm8k/", "cannot be read"),
        ("column=q", "write column=COLUMN@SOURCE"),
        ("column=@f.jsonl", "write column=COLUMN@SOURCE"),
        ("column=q,@f.jsonl", "write column=COLUMN@SOURCE"),
    ],
)
def test_names_that_lack_something(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_set_name(text)


@pytest.fixture
def folder(tmp_path):
    rows = [{"question": f"q{i}?", "answer": f"#### {i}"} for i in range(20)]
    lines(tmp_path / "test.jsonl.gz", rows)
    lines(tmp_path / "train.jsonl.gz", [{"question": "t?", "answer": "#### 1"}])
    return tmp_path


def test_commands_take_sets_where_they_take_prompts(folder):
    whole = resolve_prompts(f"gsm8k@{folder}", seed=0)
    assert [p.prompt_id for p in whole] == [f"gsm8k-test-{i}" for i in range(20)]  # in order
    assert whole[3].messages == ask("math", "q3?") and whole[3].ground_truth == "3"
    assert len(resolve_prompts(f"gsm8k/train@{folder}", seed=0)) == 1
    five = resolve_prompts(f"gsm8k@{folder}:5", seed=0)
    assert len(five) == 5 and five == resolve_prompts(f"gsm8k@{folder}", seed=0, limit=5)
    assert five != resolve_prompts(f"gsm8k@{folder}:5", seed=1)
    assert len(resolve_prompts(f"gsm8k@{folder}:5", seed=0, limit=3)) == 3
    column = resolve_prompts(f"column=question,answer@{folder / 'test.jsonl.gz'}:2", seed=0)
    assert column[0].messages[0]["content"].startswith("q") and "####" in column[0].ground_truth


def test_demo_and_files_still_work(tmp_path):
    assert len(resolve_prompts("demo:4", seed=0)) == 4
    path = lines(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    assert len(resolve_prompts(str(path), seed=0)) == 2
    at = lines(tmp_path / "a@b.jsonl", [{"prompt": "a"}])
    assert len(resolve_prompts(str(at), seed=0)) == 1


@pytest.mark.parametrize("name", ["gsm9k", "gsm9k@hub:10", "demo", "demos:3"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match="no prompt set: write demo:COUNT.*with one of deepmath"):
        resolve_prompts(name, seed=0)


def test_a_missing_file_is_a_missing_file():
    with pytest.raises(ValueError, match=r"none.jsonl does not exist"):
        resolve_prompts("none.jsonl", seed=0)
