"""`lenvm view` from the command line: a rollout file or a text in, a page out."""

import pytest

from tests.cli import command_line


def run(*words):
    return command_line.run("view", *words)


def test_a_text_on_the_shipped_model(tmp_path):
    (tmp_path / "answer.txt").write_text("the answer is 19")
    out = tmp_path / "view.html"
    given = ["--lenvm", "demo", "--prompt", "12 + 7 = ?", "--out", out]
    figures = run(*given, "--response", f"@{tmp_path / 'answer.txt'}")
    assert figures["tokens"] == 6 and figures["models"] == 1  # three words, two digits, EOS
    assert run(*given, "--response", "the answer is 19", "--truncated")["tokens"] == 5
    assert figures["bytes"] > 10_000 and out.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "either --rollouts, or --prompt and --response"),
        (["--prompt", "x"], "either --rollouts, or --prompt and --response"),
        (["--rollouts", "x", "--prompt", "x", "--response", "y"], "either --rollouts"),
        (["--rollouts", "x", "--truncated"], "--truncated is about a response given as text"),
        (["--prompt", "x", "--response", "y", "--prompt-id", "p"], "--prompt-id chooses within"),
        (["--prompt", "x", "--response", "@none.txt"], "names a file that does not exist"),
        (["--rollouts", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_end_with_a_sentence(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["view", "--lenvm", "demo", "--out", "x.html", *words]
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        command_line.invoke(*words)
    assert not (tmp_path / "x.html").exists()
