"""Any data set with a column of prompts."""

import pytest

from lenvm_rl.prompts.sets import ask, column_set, load_prompt_set
from tests.prompts.sets.files import lines

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]


def load(path, rows, *words, **settings):
    return load_prompt_set(column_set(*words, **settings), source=lines(path, rows)).prompts


def test_texts_get_a_template_and_messages_stay(tmp_path):
    rows = [{"q": "1+1?", "a": 2, "level": 1}, {"q": TURNS, "a": "2", "level": 2}]
    first, second = load(
        tmp_path / "x.jsonl",
        rows,
        "q",
        truth="a",
        extra=("level",),
        template="math",
        data_source="math/mine",
    )
    assert (first.messages, second.messages) == (ask("math", "1+1?"), TURNS)
    assert (first.ground_truth, first.data_source, first.extra) == ("2", "math/mine", {"level": 1})


def test_a_file_of_bare_texts(tmp_path):
    (tmp_path / "x.json").write_text('["one", "two"]')
    loaded = load_prompt_set(column_set("text"), source=tmp_path / "x.json")
    assert [p.messages for p in loaded.prompts] == [ask("plain", "one"), ask("plain", "two")]
    assert [p.ground_truth for p in loaded.prompts] == [None, None]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"question": "?"}, r"row 1: no column 'q'\. There are: question, a\."),
        ({"q": ""}, "nothing in column 'q'"),
        ({"q": " "}, "'q' must be text"),
        ({"q": 7}, "must hold text or messages"),
        ({"q": [{"role": "user"}]}, "must hold text or messages"),
        ({"q": "?", "a": None}, r"nothing in column 'a' \(the ground truth\)"),
    ],
)
def test_rows_without_prompt_or_truth(tmp_path, row, sentence):
    with pytest.raises(ValueError, match=sentence):
        load(
            tmp_path / "x.jsonl",
            [{"a": 1, **row} if "question" not in row else {**row, "a": 1}],
            "q",
            truth="a",
        )


@pytest.mark.parametrize("source", [None, "hub"])
def test_a_column_needs_a_source(source):
    with pytest.raises(ValueError, match="column 'q' of what. Name a folder, a file, or owner/nam"):
        load_prompt_set(column_set("q"), source=source)


def test_a_wrong_template_is_told_before_anything_is_read():
    with pytest.raises(ValueError, match="template 'nope'"):
        column_set("q", template="nope")
