"""`lenvm`: every command explains itself, does its job on small files, and refuses in sentences."""

import json
import subprocess
import sys

import pytest

from lenvm_rl import cli
from lenvm_rl.model import LengthValueModel, tokenizer_sha
from lenvm_rl.rollouts import Rollout, RolloutReader, RolloutWriter
from tests.cli.command_line import invoke, run
from tests.tiny import make_policy, make_tokenizer


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy")
    make_policy("llama").save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rollouts"
    with RolloutWriter(path, tokenizer_sha=tokenizer_sha(make_tokenizer()), vocab_size=48) as out:
        out.append(
            Rollout(
                prompt_id=f"p{p}",
                sample_id=s,
                prompt_ids=[2, 3 + p],
                response_ids=[5 + s] * (p + s + 1) + [1],
                finish_reason="stop",
                sampling={"temperature": 1.0, "max_tokens": 64},
                policy={"name": "tiny"},
            )
            for p in range(10)
            for s in range(4)
        )
    return path


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_has_an_example(command):
    ran = invoke(*command.split(), "--help")
    assert ran.exit_code == 0 and "Example" in ran.stdout


def test_init_predict_and_eval_agree_on_gamma(policy, rollouts, tmp_path):
    made = run("init", "--policy", policy, "--gamma", 0.9, "--out", tmp_path / "lenvm")
    assert LengthValueModel.from_pretrained(made["lenvm"], gamma=0.9).num_parameters() > 0
    predicted = run("predict", "--lenvm", tmp_path / "lenvm", "--rollouts", rollouts, "--limit", 1)
    assert len(predicted["remaining_lengths"]) == predicted["tokens"]
    asked = run("predict", "--lenvm", tmp_path / "lenvm", "--text", "w2 w3")
    assert asked["length"] > 0 and -1 < asked["value"] < 0
    figures = run(
        "eval",
        "prediction",
        "--lenvm",
        tmp_path / "lenvm",
        "--rollouts",
        rollouts,
        "--train",
        rollouts,
        "--out",
        tmp_path / "result",
        "--json",
        tmp_path / "figures.json",
        "--any-policy",
    )
    assert figures["gamma"] == 0.9 and figures["prompts"] == 10
    assert figures == json.loads((tmp_path / "figures.json").read_text())
    assert (tmp_path / "result" / "prediction.json").is_file()


def test_init_of_a_distribution(policy, tmp_path):
    words = ["init", "--policy", policy, "--gamma", 0.9, "--head-target", "distribution"]
    made = run(*words, "--longest", 30, "--out", tmp_path / "wide")
    assert LengthValueModel.from_pretrained(made["lenvm"]).config.bins[-2] > 30
    words = ["predict", "--lenvm", tmp_path / "wide", "--text", "w2 w3", "--max-tokens", 20]
    row = run(*words)
    assert 0 < row["p_truncated"] < 1 <= row["p10"] <= row["p99"]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "w2 w3"}\n{"prompt": "w4"}\n')
    words = ["predict", "--lenvm", tmp_path / "wide", "--prompts", prompts]
    said = run(*words, "--max-tokens", 20, "--out", tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert said["p_truncated"] == pytest.approx(sum(row["p_truncated"] for row in rows) / 2)
    assert said["p_truncated_low"] <= said["p_truncated"] <= said["p_truncated_high"]
    run(*words, "--profile", tmp_path / "profiles.jsonl", "--band-floor", 0.25)
    profiles = [json.loads(line) for line in (tmp_path / "profiles.jsonl").read_text().splitlines()]
    assert [p["profile_band"]["total"]["a"] for p in profiles] == [row["p50"] for row in rows]
    assert {p["profile_band"]["total"]["f"] for p in profiles} == {0.25}


def test_profiles_of_graded_rollouts_and_what_a_limit_cuts(policy, rollouts, tmp_path):
    graded = tmp_path / "graded"
    reader = RolloutReader(rollouts)
    with RolloutWriter(
        graded, tokenizer_sha=reader.metadata["tokenizer_sha"], vocab_size=48
    ) as out:
        for row in reader.iter_rows():
            row.reward = float(row.sample_id % 2)
            out.append([row])
    run("init", "--policy", policy, "--gamma", 0.9, "--out", tmp_path / "lenvm")
    words = ["predict", "--lenvm", tmp_path / "lenvm", "--profile", tmp_path / "profiles.jsonl"]
    assert run(*words, "--rollouts", graded)["rows"] == 10
    first = json.loads((tmp_path / "profiles.jsonl").read_text().splitlines()[0])
    assert first["samples"] == 4 and first["shortest_correct"] == 3  # samples 1 and 3: 3 and 5
    assert first["profiled_output_lengths"] == [2, 3, 4, 5] and first["p50"] == 4.0
    with pytest.raises(ValueError, match="neither a reward nor a ground truth"):
        run(*words, "--rollouts", rollouts)
    with pytest.raises(ValueError, match="a profile needs quantiles"):
        run(*words, "--text", "w2")
    cut = run("report", rollouts, "--max-tokens", 5)["cut"]
    assert cut["cut"] == sum(p + s + 2 > 5 for p in range(10) for s in range(4)) / 40
    assert cut["low"] <= cut["cut"] <= cut["high"]


def test_fresh_trunk(policy, tmp_path):
    words = ["init", "--tokenizer", policy, "--hidden-size", 64, "--layers", 1]
    made = run(*words, "--out", tmp_path / "fresh")
    assert LengthValueModel.from_pretrained(made["lenvm"]).config.vocab_size == 48


def test_init_says_what_will_not_work_and_refuses_what_is_no_decoder(tmp_path):
    from tests.guidance.trunks import make_trunk

    for name in ("qwen3_next", "bert"):
        make_trunk(name).save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
    words = ["init", "--policy", str(tmp_path / "qwen3_next"), "--out", str(tmp_path / "out")]
    result = invoke(*words)
    works = result.figures["works"]
    assert works == {"packed": False, "scoring": False, "sampling": False}
    assert "packed will not work" in result.stderr and "use_remove_padding=false" in result.stderr
    with pytest.raises(ValueError, match="is no decoder"):
        run("init", "--policy", tmp_path / "bert", "--out", tmp_path / "bert-out")
    assert not (tmp_path / "bert-out").exists()


def test_init_takes_the_trunk_of_one_model_and_the_tokenizer_of_its_kin(policy, tmp_path):
    kin = make_tokenizer(words=47)
    kin.add_special_tokens({"additional_special_tokens": ["<think>"]})
    kin.save_pretrained(tmp_path / "kin")
    words = ["init", "--policy", policy, "--tokenizer", tmp_path / "kin"]
    figures = run(*words, "--out", tmp_path / "lenvm")
    assert figures["tokens_learnt_anew"] == 1
    config = LengthValueModel.from_pretrained(tmp_path / "lenvm").config
    assert config.policy == {
        "name": str(tmp_path / "kin"),
        "revision": None,
        "tokenizer_sha": tokenizer_sha(kin),
    }
    with pytest.raises(ValueError, match="must be learnt"):
        run(*words, "--freeze-trunk", "--out", tmp_path / "frozen")


def test_a_directory_of_something_else_is_not_replaced(policy):
    with pytest.raises(ValueError, match="holds something else than a LenVM"):
        run("init", "--policy", "demo", "--out", policy)
    assert (policy / "model.safetensors").is_file()


def test_report_and_split(rollouts, tmp_path):
    figures = run("report", rollouts, "--out", tmp_path / "report")
    assert figures["rows"] == 40 and figures["share_truncated"] == 0
    assert (tmp_path / "report" / "lengths.png").is_file()
    train, heldout = tmp_path / "train", tmp_path / "heldout"
    run("split", rollouts, "--train", train, "--heldout", heldout, "--heldout-fraction", 0.2)
    assert (len(RolloutReader(train)), len(RolloutReader(heldout))) == (32, 8)


def test_sample_and_convert(policy, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "w2 w3"}\n{"prompt": "w4"}\n')
    words = ["sample", "--policy", policy, "--prompts", prompts, "-n", 2, "--max-tokens", 6]
    figures = run(*words, "--out", tmp_path / "sampled")
    assert figures["rows"] == 4 and len(RolloutReader(tmp_path / "sampled")) == 4
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "w2", "completion": "w3 w4", "finish_reason": "stop"}\n')
    run("convert", "text", pairs, "--raw", "--tokenizer", policy, "--out", tmp_path / "converted")
    row = next(RolloutReader(tmp_path / "converted").iter_rows())
    assert row.response_ids == [3, 4, 1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["report", "nowhere"], "nowhere"),
        (["sample", "--policy", "demo", "--prompts", "demo:0", "--out", "x"], "positive number"),
        (["sample", "--policy", "demo", "--prompts", "none.jsonl", "--out", "x"], "does not exist"),
        (["init", "--out", "x"], "give --policy"),
        (
            ["init", "--policy", "demo", "--head-target", "distribution", "--out", "x"],
            "no --longest: a distribution needs the tokens of the longest response",
        ),
        (["init", "--policy", "demo", "--gamma", "1", "--out", "x"], r"gamma must be in"),
        (
            ["init", "--policy", "demo", "--layers", "99", "--out", "x"],
            r"has \d+ blocks, and 99 were asked for",
        ),
        (
            ["init", "--policy", "demo", "--layers", "1", "--freeze-trunk", "--out", "x"],
            "--layers 1 keeps the first ones alone: leave out one",
        ),
        (
            ["init", "--tokenizer", "demo", "--layers", "0", "--out", "x"],
            "at least 1, got 0",
        ),
        (["predict", "--lenvm", "demo"], "exactly one of"),
        (
            ["convert", "csv", "x", "--tokenizer", "demo", "--out", "y"],
            "of text, reference",
        ),
    ],
)
def test_mistakes_end_with_a_sentence(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        invoke(*words)


def test_the_console_script_shows_the_sentence_and_no_traceback(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "lenvm_rl.cli", "report", "nowhere"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 2
    assert "error: " in result.stderr and "nowhere" in result.stderr
    assert "Traceback" not in result.stderr
