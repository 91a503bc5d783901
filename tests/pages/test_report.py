"""The report shows every result it can read, and names the rest."""

import base64
import json
import re

import pytest

from lenvm_rl.evals.result import Result
from lenvm_rl.pages.report import headlines, write_report
from lenvm_rl.pages.result_files import find_results

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
EVIL = "<script>window.executed=1</script>"


@pytest.fixture
def run(tmp_path):
    """Two whole results, a rollout file, a model, a checkpoint, a log, and files of other kinds."""
    root = tmp_path / "run"
    figures = {"mre_s0": 0.1234, "mre_noise_floor": 0.05, "kendall_tau_s0": None, "prompts": 12}
    rows = [{"prompt_id": EVIL, "lenvm": 12.5, "right": True}, {"prompt_id": "b", "lenvm": None}]
    headline = [("mre_s0", "mean relative error at the prompt", ".3f")]
    Result("prediction", figures, {"prompts": rows}, headline).save(root / "prediction")
    (root / "prediction" / "prediction_prompts.png").write_bytes(PNG)
    (root / "prediction" / "states").mkdir()
    (root / "prediction" / "states" / "part-00000.parquet").write_bytes(b"x")
    many = [{"i": i} for i in range(100)]
    Result("new_thing", {"outer": {"inner": 3}}, {"many": many}).save(root / "mine")
    (root / "model").mkdir()
    (root / "model" / "config.json").write_text('{"model_type": "lenvm"}')
    (root / "run.log").write_text("hello")
    (root / "half.json").write_text('{"a": ')
    (root / "alone.json").write_text('{"a": 1}')
    (root / "global_step_3").mkdir()
    (root / "global_step_3" / "state.json").write_text('{"a": 1}')
    (root / "notes.txt").write_text("x")
    (root / "mine" / "new_thing_cut.png").write_bytes(PNG[:40])
    return root


def test_results_with_their_tables_and_pictures(run):
    found = find_results(run)
    assert [result.name for result in found.results] == ["new_thing", "prediction"]
    prediction = found.results[1]
    assert prediction.figures["mre_s0"] == 0.1234
    assert [row["lenvm"] for row in prediction.tables["prompts"]] == [12.5, None]
    assert [path.name for path in prediction.pictures] == ["prediction_prompts.png"]


def test_what_is_no_result_is_named(run):
    found = find_results(run)
    assert [path.name for path, _ in found.broken] == ["half.json", "new_thing_cut.png"]
    assert [path.name for path in found.unknown] == ["alone.json", "notes.txt"]
    assert {path.name for path in found.data} == {"global_step_3", "model", "states", "run.log"}


def test_the_page_holds_everything(run):
    figures = write_report(run, run / "report.html")
    html = (run / "report.html").read_text()
    assert figures["results"] == ["mine/new_thing", "prediction/prediction"]
    assert figures["pictures"] == 1 and figures["bytes"] == len(html.encode())
    assert list(figures["broken"]) == ["half.json", "mine/new_thing_cut.png"]
    assert figures["unknown"] == ["alone.json", "notes.txt"]
    assert base64.b64encode(PNG).decode() in html
    assert "half.json" in html and "notes.txt" in html and "70 of them only in the file" in html
    assert "<script" not in html and "&lt;script&gt;window.executed=1" in html
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)
    # Written into the run itself, it is not found by the next one.
    assert write_report(run, run / "report.html")["unknown"] == figures["unknown"]


def test_the_first_numbers_are_those_that_the_result_names():
    given = {"mre_s0": 0.1234, "mre_noise_floor": float("nan"), "prompts": 12}
    named = [("mre_s0", "mean relative error", ".3f"), ("mre_noise_floor", "noise floor", ".3f")]
    assert headlines(given, named) == [("mean relative error", "0.123")]
    given = {"top": {"positive_by_mean": ["wait", "hmm"]}, "share_positive": 0.25}
    named = [
        ("top.positive_by_mean", "longer after", "words"),
        ("share_positive", "tokens over the threshold", ".1%"),
        ("share_positive", "with no format", "{}"),
        ("top", "no number", ".1%"),
    ]
    assert headlines(given, named) == [
        ("longer after", "wait, hmm"),
        ("tokens over the threshold", "25.0%"),
        ("with no format", "0.25"),
    ]
    given = {"flag": True, "outer": {"inner": 3, "text": "x"}, "half_way": 0.5}
    assert headlines(given, []) == [("outer.inner", "3"), ("half way", "0.5")]


def test_the_headline_of_a_file_is_no_figure(run):
    prediction = find_results(run).results[1]
    assert prediction.headline == [("mre_s0", "mean relative error at the prompt", ".3f")]
    assert "headline" not in prediction.figures
    write_report(run, run / "report.html")
    page = (run / "report.html").read_text()
    assert "mean relative error at the prompt" in page and "0.123" in page


def test_tables_come_from_csv_where_the_lines_are_broken(run):
    (run / "mine" / "new_thing.jsonl").write_text('{"no": "table"}\n')
    found = find_results(run)
    assert len(found.results[0].tables["many"]) == 100
    assert ("new_thing.jsonl", "a row has no 'table'") in [(p.name, r) for p, r in found.broken]


def test_an_empty_folder_and_none_at_all(tmp_path):
    (tmp_path / "empty").mkdir()
    figures = write_report(tmp_path / "empty", tmp_path / "report.html")
    assert figures["results"] == [] and json.dumps(figures)
    assert "No results were found" in (tmp_path / "report.html").read_text()
    with pytest.raises(ValueError, match="not a directory"):
        write_report(tmp_path / "nowhere", tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()
