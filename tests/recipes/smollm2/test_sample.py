"""The sampling step: balanced prompts, the commands it runs, the truncated share by source."""

import json

import pytest

from lenvm_rl.prompts.prompt import read_prompts
from recipes.smollm2 import sample
from recipes.smollm2.prompts import Share, mixed_prompts
from recipes.smollm2.results import LENVM, Step, StepFailed

SHARES = (Share("tinystories", 6, 2), Share("mt_bench", 3, 2))
LENGTHS = {
    "prompts": 2,
    "rows": 8,
    "tokens": 800,
    "mean": 100.0,
    "std": 3.0,
    "share_truncated": 0.25,
    "percentiles": {"p50": 99.0},
    "within_prompt": {"std": 2.0},
    "suggested_gamma": 0.99,
    "sources": [
        {"source": "ifeval", "rows": 4, "tokens": 500, "truncated_rows": 2},
        {"source": "mt_bench/math", "rows": 1, "tokens": 20, "truncated_rows": 0},
        {"source": "mt_bench/writing", "rows": 3, "tokens": 280, "truncated_rows": 1},
    ],
}


@pytest.fixture
def places(tmp_path):
    stories = [{"text": f"Once there were {i} cats.\n\nThey slept."} for i in range(9)]
    asked = [{"question_id": i, "category": "math", "turns": [f"{i}?", "?"]} for i in range(5)]
    found = {}
    for name, rows in {"tinystories": stories, "mt_bench": asked}.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found[name] = str(file)
    return found


def test_prompts_are_balanced_mixed_and_on_one_side(places):
    train, heldout = mixed_prompts(places, seed=0, shares=SHARES)
    sources = [prompt.data_source.split("/")[0] for prompt in heldout]
    assert sorted(sources) == ["mt_bench", "mt_bench", "tinystories", "tinystories"]
    assert len(train) == 9 and not {p.prompt_id for p in train} & {p.prompt_id for p in heldout}
    assert [p.data_source for p in train] != sorted(p.data_source for p in train)
    assert mixed_prompts(places, seed=0, shares=SHARES) == (train, heldout)


def test_a_set_that_is_too_small_or_unknown_is_told(places):
    with pytest.raises(ValueError, match="5 distinct prompts, 9 are needed"):
        mixed_prompts(places, seed=0, shares=(Share("tinystories", 1, 0), Share("mt_bench", 9, 0)))
    with pytest.raises(ValueError, match="no prompts of aime"):
        mixed_prompts({"aime": "here"}, seed=0)
    with pytest.raises(ValueError, match="--place ifeval: write SET@PLACE"):
        sample.places(["ifeval"])


def test_the_step_samples_both_sides_and_says_what_was_truncated(tmp_path, places, monkeypatch):
    asked = []

    def lenvm(self, *words, env=None):
        asked.append([str(word) for word in words])
        return {"tokens_per_s": 7.0} if words[0] == "sample" else LENGTHS

    monkeypatch.setattr(Step, "lenvm", lenvm)
    monkeypatch.setattr(mixed_prompts, "__kwdefaults__", {"shares": SHARES})
    result = sample.run(tmp_path, place=[f"{name}@{file}" for name, file in places.items()])
    assert [words[0] for words in asked] == ["sample", "report"] * 2
    assert [words[words.index("-n") + 1] for words in asked[::2]] == ["4", "32"]
    assert len(read_prompts(tmp_path / "prompts" / "heldout.jsonl")) == 4
    sources = result["train"]["sources"]
    assert sources["mt_bench"] == {"rows": 4, "mean": 75.0, "share_truncated": 0.25}
    assert sources["ifeval"]["share_truncated"] == 0.5
    assert json.loads((tmp_path / "results" / "sample.json").read_text()) == result


def test_commands_are_shown_timed_and_kept(tmp_path, capfd):
    step = Step("fetch", tmp_path)
    said = step.run(["lenvm", "words"], [LENVM[0], "-c", "print('hello')"], env={"A": "1 2"})
    assert said == "hello\n"
    shown = capfd.readouterr().out
    assert shown.startswith("$ A='1 2' lenvm words\nhello\n# ")
    result = step.save({"figure": 1.5})
    assert result["commands"][0]["command"] == "A='1 2' lenvm words"
    assert result["figure"] == 1.5 and result["machine"].split()[1:3] == ["CPU", "cores,"]


def test_a_command_that_fails_ends_the_step(tmp_path, monkeypatch):
    step = Step("fetch", tmp_path)
    with pytest.raises(StepFailed, match="`lenvm` ended with exit status 3"):
        step.run(["lenvm"], [LENVM[0], "-c", "raise SystemExit(3)"])
    monkeypatch.setattr("recipes.smollm2.results.LENVM", (LENVM[0], "-c", "print('no figures')"))
    with pytest.raises(StepFailed, match="without its line of figures"):
        step.lenvm("report")
