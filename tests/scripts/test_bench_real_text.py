"""The real-text benchmark, in tiny: its data, its training loop, its verdict, and a whole run."""

import gzip
import json
import math
from pathlib import Path

import pytest
import torch

from lenvm_rl.core import discounted_returns
from lenvm_rl.model import LengthValueModel, from_scratch, tokenizer_sha
from lenvm_rl.model.training import Recipe, learning_rate, micro_batches, train
from lenvm_rl.rollouts import Rollout, RolloutReader, RolloutWriter, shared_prompts
from scripts.bench.harness import main
from scripts.bench.plots import plot_positions
from scripts.bench.text_comparison import Errors, compare, margin
from scripts.bench.text_sources import completions_source, story_prompts
from tests.tiny import make_policy, make_tokenizer

GAMMA = 0.95
EOS = 1


def write_gz(path: Path, rows: list) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def answers(tmp_path):
    """A folder shaped like the real data: 12 + 4 prompts, one empty answer, non-ASCII text."""
    folder = tmp_path / "completions"
    folder.mkdir()
    ids = [f"q{i}" for i in range(12)]
    write_gz(
        folder / "zeroeval_gsm_prompts.jsonl.gz",
        [{"id": name, "prompt": f"How many eggs are {name}?"} for name in ids],
    )
    texts = [(name, f"Einfach: {name} × 2 " + "und so weiter " * k) for name in ids for k in (1, 4)]
    write_gz(
        folder / "zeroeval_gsm.jsonl.gz",
        [{"id": n, "model": "m", "completion": t} for n, t in [*texts, ("q0", "")]],
    )
    write_gz(
        folder / "qwen25math_math_n8.jsonl.gz",
        [
            {
                "id": i,
                "system": "Box it.",
                "prompt": f"{i}+1?",
                "gt": "1",
                "completions": ["$x$"] * 3,
            }
            for i in range(4)
        ],
    )
    return folder


def rows_with_announced_length(count: int) -> list[Rollout]:
    """Responses as long as the last prompt token says (2..13), plus one in ten that was cut."""
    rows = []
    for i in range(count):
        length, truncated = 2 + i % 12, i % 10 == 9
        rows.append(
            Rollout(
                prompt_id=f"p{i % 36}",
                sample_id=i,
                prompt_ids=[20 + i % 7, 2 + i % 12],
                response_ids=[30] * (length - 1) + [30 if truncated else EOS],
                finish_reason="length" if truncated else "stop",
                data_source="toy",
            )
        )
    return rows


@pytest.fixture
def toy(tmp_path):
    tokenizer = make_tokenizer()
    for name, count in (("train", 240), ("heldout", 60)):
        with RolloutWriter(
            tmp_path / name, tokenizer_sha=tokenizer_sha(tokenizer), eos_ids=[EOS]
        ) as writer:
            writer.append(rows_with_announced_length(count))
    torch.manual_seed(0)
    model = from_scratch(tokenizer, hidden_size=32, num_layers=1, num_heads=2, gamma=GAMMA)
    return model, tmp_path / "train", tmp_path / "heldout"


def test_answers_become_rollout_files_split_by_prompt(answers, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    source = completions_source(answers, work, completions=100, vocab=300, heldout=0.25, seed=0)
    assert source.facts["gsm8k"]["left_out"] == {"empty_completion": 1}
    assert source.facts["gsm8k"]["rows"] == 24 and source.facts["math"]["rows"] == 12
    assert shared_prompts([source.train, source.heldout]) == 0
    train, held = (list(RolloutReader(p).iter_rows()) for p in (source.train, source.heldout))
    assert {row.prompt_id[:4] for row in held if row.data_source == "math"} <= {"math"}
    assert len({r.prompt_id for r in held}) == 3 + 1 and len(train) + len(held) == 36
    for row in train + held:
        text = source.tokenizer.decode(row.response_ids)
        assert text.endswith("<|end|>") and row.finish_reason == "stop"
        if row.data_source == "gsm8k":
            assert text.startswith(f"Einfach: {row.prompt_id} × 2 und")


def test_the_number_of_completions_is_kept(answers, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    source = completions_source(answers, work, completions=20, vocab=300, heldout=0.3, seed=1)
    counted = sum(f["rows"] + sum(f["left_out"].values()) for f in source.facts.values())
    assert counted == 20


def test_story_prompts_are_different_openings(tmp_path):
    stories = tmp_path / "stories.json.gz"
    with gzip.open(stories, "wt") as file:
        json.dump(
            [" ".join(f"w{2 + (i * j) % 40}" for j in range(1, 20)) for i in range(9)] * 2, file
        )
    prompts = story_prompts(make_tokenizer(), stories, count=8, seed=0)
    assert len(prompts) == 8 == len(set(map(tuple, prompts)))
    assert all(3 <= len(ids) <= 8 for ids in prompts)


def test_micro_batches_hold_every_state_once_with_its_return():
    rows = rows_with_announced_length(30)
    batches = micro_batches(rows, gamma=GAMMA, truncated="drop", token_budget=40)
    assert len(batches) > 3 and all(b.ids.numel() <= 40 for b in batches)
    assert sum(len(b.ids) for b in batches) == 30
    finished = [row for row in rows if not row.truncated]
    assert sum(b.weights.sum().item() for b in batches) == sum(row.length for row in finished)
    row = rows[4]
    (one,) = micro_batches([row], gamma=GAMMA, truncated="drop", token_budget=1)
    # s_0 is the last prompt token; EOS is not fed.
    assert one.ids.tolist() == [[*row.prompt_ids, *row.response_ids[:-1]]]
    expected = discounted_returns(torch.ones(1, row.length), gamma=GAMMA)
    torch.testing.assert_close(one.targets[:, 1:], expected)
    assert one.weights.tolist() == [[0.0] + [1.0] * row.length]


def test_the_learning_rate_warms_up_and_ends_with_the_steps_or_the_clock():
    rates = [learning_rate(step, 1000, 0.0) for step in range(1000)]
    assert rates[0] < 0.06 and 18 <= rates.index(max(rates)) <= 22
    assert rates[-1] < 1e-4
    assert learning_rate(100, 1000, 0.999) < 1e-4
    assert learning_rate(500, 1000, 0.2) == learning_rate(500, 1000, 0.0)


def test_a_trained_model_beats_the_naive_predictors_and_a_fresh_one_does_not(toy):
    model, train_path, heldout = toy
    _, before = compare(model, train_path, heldout, "toy")
    assert not before["beats_naive_everywhere"]

    done = train(
        model,
        train_path,
        Recipe(
            epochs=60,
            minutes=5,
            learning_rate=1e-2,
            batch_rows=48,
            micro_tokens=256,
            boundary_weight=20.0,
        ),
        label="toy",
    )
    assert not done["ended_by_clock"] and done["loss_by_tenth"][-1] < done["loss_by_tenth"][0] / 10

    table, after = compare(model, train_path, heldout, "toy")
    assert after["beats_naive_everywhere"]
    assert after["beats"] == {name: [True] * 5 for name in ("mean", "linear", "survival")}
    assert after["r2"]["lenvm"] > 0.95 > after["r2"]["survival"]
    assert after["heldout_completions"] == 54  # one in ten was cut and is not judged
    assert len(table) == 4 * 5 and all(math.isfinite(row["length_mre"]) for row in table)


def test_training_ends_with_the_clock(toy):
    model, train_path, _ = toy
    done = train(
        model, train_path, Recipe(epochs=1e6, minutes=0.01, learning_rate=1e-3), label="toy"
    )
    assert done["ended_by_clock"] and done["seconds"] < 5


def test_a_missing_data_source_is_named(toy):
    model, train_path, _ = toy
    with pytest.raises(ValueError, match="no finished training completion"):
        compare(model, train_path, train_path, "gsm8k")


def test_the_margin_counts_prompts_not_completions():
    def errors(horizon):
        x = torch.tensor(horizon)[:, None]
        return Errors(x, x.abs(), x[:, 0])

    ours = errors([0.0, 0.0, 0.0, 0.0])
    theirs = errors([1.0, 1.0, math.sqrt(2.0), math.sqrt(2.0)])
    # prompts a and b gain 1 and 2: mean 1.5, standard error sqrt(1/2) / sqrt(2) = 0.5
    assert margin(ours, theirs, ["a", "a", "b", "b"]) == pytest.approx([3.0])
    assert margin(theirs, ours, ["a", "a", "b", "b"]) == pytest.approx([-3.0])
    assert math.isnan(margin(ours, theirs, ["a"] * 4)[0])


def test_the_figure_is_a_png(tmp_path):
    table = [
        {
            "dataset": d,
            "predictor": p,
            "position": x,
            "u_rmse": 0.1,
            "u_mae": 0.1,
            "length_mre": 0.3,
        }
        for d in ("one", "two")
        for p in ("lenvm", "mean", "linear", "survival")
        for x in (0.0, 0.5)
    ]
    plot_positions(table, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_whole_run_leaves_numbers_a_figure_and_checkpoints(answers, tmp_path, capsys):
    policy, stories = tmp_path / "policy", tmp_path / "stories.json.gz"
    make_policy("llama").save_pretrained(policy)
    make_tokenizer().save_pretrained(policy)
    with gzip.open(stories, "wt") as file:
        json.dump([" ".join(f"w{2 + (i * j) % 40}" for j in range(1, 12)) for i in range(20)], file)
    arguments = f"--data {answers} --stories-model {policy} --story-texts {stories} --quick"
    out, copy = tmp_path / "out", tmp_path / "copy.json"
    words = ["real_text", *arguments.split(), "--out", str(out), "--json", str(copy)]
    assert main(words) == 0

    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures == json.loads(copy.read_text())
    assert set(figures["datasets"]) == {"gsm8k", "math", "stories"}
    assert figures["beats_naive"] == all(
        entry["beats_naive_everywhere"] for entry in figures["datasets"].values()
    )
    assert len(figures["positions"]) == 3 * 4 * 5
    assert {"real_text.json", "real_text.jsonl", "real_text.png", "real_text_positions.csv"} <= {
        path.name for path in out.iterdir()
    }
    gamma = figures["datasets"]["stories"]["gamma"]
    assert LengthValueModel.from_pretrained(out / "stories", gamma=gamma).config.gamma == gamma


def test_the_command_line_says_what_is_missing(capsys):
    for arguments, sentence in (
        ([], "give --data, --stories-model"),
        (["--stories-model", "m"], "needs --story-texts"),
    ):
        with pytest.raises(SystemExit):
            main(["real_text", *arguments])
        assert sentence in capsys.readouterr().err
