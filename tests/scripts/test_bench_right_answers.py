"""bench/right_answers.py: its values against plain means, and small worlds as sceptics try them."""

import json

import pytest
import torch
from torch.testing import assert_close

from lenvm_rl.core import logit_to_length, logit_to_value
from scripts.bench import right_answers as bench
from scripts.bench.harness import main

SIZES = {"short": 20, "long": 60, "jitter": 3, "gamma": 0.98, "groups": 8, "updates": 40}
SMALL = [f"--{name}={value}" for name, value in {**SIZES, "seeds": 1}.items()]


def run(capsys, *more):
    assert main(["right_answers", *SMALL, *more]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_values_are_means_over_what_can_still_come():
    world = bench.World(short=3, long=5, jitter=0, gamma=0.9, right="mostly_long", groups=1)
    batch = bench.Batch.sample(world, 0.5, torch.Generator().manual_seed(0))
    row = int(batch.went_on.nonzero()[0])
    of_all, of_right = (
        logit_to_value(batch.logits(world, 0.25, answers=answers, times=1.0))[row]
        for answers in ("all", "correct")
    )
    end = {n: -(1 - 0.9**n) for n in range(6)}
    share = 0.25 * 0.9 / (0.25 * 0.9 + 0.75 * 0.3)
    for values, on in ((of_all, 0.25), (of_right, share)):
        before = [on * end[5 - t] + (1 - on) * end[3 - t] for t in range(3)]
        assert_close(values[:5], torch.tensor([*before, end[2], end[1]]), atol=1e-6, rtol=0)
    twice = batch.logits(world, 0.25, answers="all", times=2.0)[row, :5]
    once = batch.logits(world, 0.25, answers="all", times=1.0)[row, :5]
    assert_close(logit_to_length(twice, gamma=0.9), 2 * logit_to_length(once, gamma=0.9))


@pytest.mark.parametrize("right", ["long", "short"])
@pytest.mark.parametrize("start", ["0.125", "0.5", "0.875"])
def test_right_answers_are_learnt_as_without_a_length_term(capsys, right, start):
    got = run(capsys, "--right", right, "--start", start)["p_right"]
    assert got["none"] > float(start) * (right == "long") + (1 - float(start)) * (right == "short")
    assert got["recommended"] >= got["none"] - 0.02
    if right == "long":
        assert got["old"] < 0.3 * got["none"], "the fault that this bench is there to see"


@pytest.mark.parametrize("right", ["long", "mostly_long"])
def test_the_trainer_computes_the_same_advantages(right):
    world = bench.World(**{**SIZES, "updates": 1}, right=right)
    for arm in bench.arms(("frozen", "stale")):
        batch = bench.Batch.sample(world, 0.5, torch.Generator().manual_seed(3))
        wanted = bench.advantages(world, arm, batch, 0.4)
        assert wanted.any()
        assert_close(bench.by_trainer(world, arm, batch, 0.4), wanted, atol=1e-5, rtol=1e-4)


def test_among_equally_right_answers_the_short_ones_win(capsys):
    got = run(capsys, "--right", "both")
    assert got["p_short"]["none"] == 0.5
    assert got["p_short"]["recommended"] > 0.9
    assert {(r["baseline"], r["critic"]) for r in got["rows"] if r["method"] == "recommended"} == {
        ("group", None),
        *(("correct", critic) for critic in bench.CRITICS),
    }


def test_where_length_and_answer_are_at_odds_the_answer_has_the_last_word(capsys):
    got = run(capsys, "--right", "mostly_long", "--updates", "80", "--critic", "frozen")
    assert got["p_right"]["recommended"] >= got["p_right"]["none"] - 0.05
    assert got["p_right"]["old"] < 0.5


def test_what_is_played_is_what_the_recipe_says(capsys, tmp_path):
    more = ["--updates", "1", "--critic", "exact", "--json", str(tmp_path / "out")]
    assert main(["right_answers", *SMALL, *more]) == 0
    got = json.loads((tmp_path / "out").read_text())
    assert got == json.loads(capsys.readouterr().out.splitlines()[-1])
    settings = got["settings"]["recommended"]
    assert settings["applies_to"] == "correct" and settings["baseline"] == "auto"
    assert settings["clamp"] is not None and settings["lam"] == "auto"
    assert list(got["p_right"]) == ["none", "kimi", "recommended", "old"]
    old = bench.old()
    assert (old.baseline, old.clamp, old.recalibrates, old.lam) == ("all", None, False, 0.95)


@pytest.mark.parametrize("wrong", [["--short", "600"], ["--start", "1.0"]])
def test_worlds_without_a_choice_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        main(["right_answers", *wrong])
    assert wrong[0] in capsys.readouterr().err
