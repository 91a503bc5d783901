"""`lenvm prompts`: files that lenvm and verl read, counts as JSON, and refusals."""

import json
import re

import pyarrow.parquet as pq
import pytest

from lenvm_rl.prompts.prompt import read_prompts
from lenvm_rl.prompts.sets import PROMPT_SETS, ask
from tests.cli import command_line
from tests.prompts.sets.files import lines


def invoke(*words):
    return command_line.invoke("prompts", *words)


def figures(*words):
    return command_line.run("prompts", *words)


@pytest.fixture
def gsm8k(tmp_path):
    rows = [{"question": f"q{i}?", "answer": f"#### {i}"} for i in range(100)]
    return lines(tmp_path / "gsm8k" / "test.jsonl.gz", [*rows, rows[0]]).parent


def test_list_shows_every_set():
    result = invoke("--list")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in PROMPT_SETS)
    sets = json.loads(result.stdout.strip().splitlines()[-1])["sets"]
    assert [one["name"] for one in sets] == list(PROMPT_SETS)


def test_both_sides_of_a_split_are_written_for_verl(gsm8k, tmp_path):
    out = tmp_path / "out" / "p.parquet"
    done = figures("gsm8k", "--source", gsm8k, "--heldout-fraction", 0.3, "--seed", 1, "--out", out)
    train, heldout = read_prompts(out), read_prompts(tmp_path / "out" / "p.heldout.parquet")
    assert done["prompts"] == len(train) and done["heldout"] == len(heldout) > 0
    assert (done["rows"], done["duplicates"]) == (101, 1)
    assert len({p.prompt_id for p in (*train, *heldout)}) == 100
    row = pq.read_table(out).to_pylist()[0]
    assert row["prompt"] == train[0].messages and row["data_source"] == "gsm8k"
    assert row["reward_model"] == {"style": "rule", "ground_truth": train[0].ground_truth}
    assert row["extra_info"]["index"] == 0


def test_prompts_of_one_file_are_left_out_of_another(gsm8k, tmp_path):
    figures("gsm8k", "--source", gsm8k, "--limit", 10, "--out", tmp_path / "a.jsonl")
    words = ("--source", gsm8k, "--exclude", tmp_path / "a.jsonl", "--out", tmp_path / "b.jsonl")
    assert figures("gsm8k", *words)["excluded"] == 11  # the repeated one among them
    ids = [{p.prompt_id for p in read_prompts(tmp_path / f"{name}.jsonl")} for name in "ab"]
    assert len(ids[0]) == 10 and len(ids[1]) == 90 and not ids[0] & ids[1]


def test_a_column_of_any_data_set(tmp_path):
    path = lines(tmp_path / "mine.jsonl", [{"q": "1+1?", "a": "2"}])
    column = ("column", "--source", path, "--column", "q", "--truth", "a")
    own = ("--template", "math", "--data-source", "math/mine", "--out", tmp_path / "p.jsonl")
    figures(*column, *own, "--json", tmp_path / "figures.json")
    prompt = read_prompts(tmp_path / "p.jsonl")[0]
    assert prompt.messages == ask("math", "1+1?")
    assert (prompt.ground_truth, prompt.data_source) == ("2", "math/mine")
    assert json.loads((tmp_path / "figures.json").read_text())["prompts"] == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "name a set and --out FILE"),
        (("gsm8k",), "name a set and --out FILE"),
        (("gsm8k", "--out", "x.csv"), "--out x.csv: prompts are written as .jsonl or .parquet"),
        (("nope", "--out", "x.jsonl"), "there is no prompt set 'nope': choose one of deepmath"),
        (("column", "--out", "x.jsonl"), "needs --column NAME"),
        (("gsm8k", "--column", "q", "--out", "x.jsonl"), "--column is for `lenvm prompts column`"),
        (("gsm8k", "--truth", "a", "--out", "x.jsonl"), "--truth is for `lenvm prompts column`"),
        (
            ("gsm8k", "--source", "FOLDER", "--heldout-fraction", "0.000001", "--out", "x.jsonl"),
            "leaves one side empty: there are 100 and 0 prompts",
        ),
    ],
)
def test_refusals(gsm8k, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    words = [gsm8k if word == "FOLDER" else word for word in words]
    with pytest.raises(ValueError, match=re.escape(sentence)):
        invoke(*words)
    assert not list(tmp_path.glob("x.*"))


TRUTHS = [{"inputs": ["2\n"], "outputs": ["4\n"]}, {"inputs": ["3\n"], "outputs": ["6\n"]}]


def column(path, truths, source):
    rows = [{"q": f"double {i}", "tests": truth} for i, truth in enumerate(truths)]
    words = ("--column", "q", "--truth", "tests", "--data-source", source)
    return ("column", "--source", lines(path, rows), *words, "--out", path.parent / "p.parquet")


def test_objects_as_truths_become_json(tmp_path):
    figures(*column(tmp_path / "x.jsonl", TRUTHS, "code/mine"))
    truths = [
        row["reward_model"]["ground_truth"]
        for row in pq.read_table(tmp_path / "p.parquet").to_pylist()
    ]
    assert [json.loads(truth) for truth in truths] == TRUTHS


@pytest.mark.parametrize(
    ("source", "bad"),
    [
        ("code/mine", {"inputs": ["1"], "outputs": [""]}),
        ("code/mine", "assert True"),
        ("code/mine", "def check(candidate):\n    assert candidate(1) == 2\n"),
        ("gsm8k", "two"),
        ("gsm8k", {"target": 2}),
        ("math/mine", {"a": 1}),
        ("multiple_choice/mine", "Paris"),
    ],
)
def test_truths_that_no_grader_reads_are_refused_by_row(tmp_path, source, bad):
    good = {"code/mine": TRUTHS[0], "gsm8k": "2", "math/mine": "2", "multiple_choice/mine": "B"}
    with pytest.raises(ValueError, match="1 of 2 ground truths cannot be graded.*row 2"):
        invoke(*column(tmp_path / "x.jsonl", [good[source], bad], source))
    assert not (tmp_path / "p.parquet").exists()
