"""The plain loop: weights of appendix E by hand, every target learns, every precision runs."""

import pytest
import torch

from lenvm_rl.core import TARGETS, LengthBins
from lenvm_rl.model import from_scratch, tokenizer_sha
from lenvm_rl.model.heldout import heldout_errors
from lenvm_rl.model.training import PRECISIONS, Recipe, micro_batches, train, weigh
from lenvm_rl.rollouts import Rollout, RolloutReader, RolloutWriter
from tests.tiny import make_tokenizer

EOS, GAMMA = 1, 0.9
BINS = list(LengthBins.up_to(40).edges)


def announced(count):
    """Responses as long as the last prompt token says, 2..9."""
    return [
        Rollout(
            prompt_id=f"p{i % 16}",
            sample_id=i,
            prompt_ids=[20, 2 + i % 8],
            response_ids=[30] * (1 + i % 8) + [EOS],
            finish_reason="stop",
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "rollouts"
    with RolloutWriter(path, tokenizer_sha=tokenizer_sha(make_tokenizer())) as writer:
        writer.append(announced(160))
    return path


def fresh(target="return"):
    torch.manual_seed(0)
    return from_scratch(
        make_tokenizer(),
        hidden_size=32,
        num_layers=1,
        gamma=GAMMA,
        target=target,
        bins=BINS if target == "distribution" else None,
        length_scale=9.0,
    )


def test_weights_by_hand():
    weights = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert weigh(weights, "token_mean").equal(weights)
    expected = torch.tensor([[0.5, 0.5, 0, 0], [0, 1 / 3, 1 / 3, 1 / 3], [0, 0, 0, 0]])
    torch.testing.assert_close(weigh(weights, "trajectory_mean"), expected)
    expected = torch.tensor([[0.5, 1.0, 0, 0], [0, 1 / 3, 0.5, 1.0], [0, 0, 0, 0]])
    torch.testing.assert_close(weigh(weights, "inverse_remaining"), expected)


def test_labels_of_every_target():
    (row,) = announced(2)[1:]  # three tokens: remaining lengths 3, 2, 1 at s_0, s_1, s_2
    left = torch.tensor([3.0, 2.0, 1.0])
    expected = {
        "return": -(1 - GAMMA**left),
        "length": left / 2,
        "normalized_length": (left / 2).clamp(max=1),
        "log_length": (1 + left).log(),
        "distribution": left,
    }
    for target in TARGETS:
        (batch,) = micro_batches(
            [row], gamma=GAMMA, truncated="drop", token_budget=99, target=target, length_scale=2.0
        )
        torch.testing.assert_close(batch.targets[0, 1:], expected[target])
        assert batch.weights.tolist() == [[0.0, 1.0, 1.0, 1.0]]


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_learns_lengths_that_the_prompt_announces(file, target):
    model, rows = fresh(target), list(RolloutReader(file).iter_rows())
    before = heldout_errors(model, rows)["length_error"]
    recipe = Recipe(learning_rate=1e-2, steps=120, batch_rows=32)
    train(model, file, recipe, label="toy", progress=False)
    assert heldout_errors(model, rows)["length_error"] < min(0.5, before / 4)


def test_a_distribution_learns_from_truncated_rows_what_they_tell(tmp_path):
    """Half of the responses have 4 tokens, half were cut at 4: P(l > 4) is a half, not nothing."""
    rows = [
        Rollout(
            prompt_id=f"p{i}",
            sample_id=0,
            prompt_ids=[20, 3],
            response_ids=[30, 30, 30, EOS if i % 2 else 30],
            finish_reason="stop" if i % 2 else "length",
        )
        for i in range(64)
    ]
    with RolloutWriter(tmp_path / "r", tokenizer_sha=tokenizer_sha(make_tokenizer())) as writer:
        writer.append(rows)
    longer = {}
    for truncated in ("drop", "censored"):
        model = fresh("distribution")
        recipe = Recipe(learning_rate=1e-2, steps=150, batch_rows=32, truncated=truncated)
        train(model, tmp_path / "r", recipe, label="toy", progress=False)
        with torch.no_grad():
            at_prompt = model.distribution(torch.tensor([[20, 3]]))[0, 1]
        longer[truncated] = at_prompt.longer_than(4.0).item()
    assert longer["drop"] < 0.05
    assert longer["censored"] == pytest.approx(0.5, abs=0.05)


def test_micro_batches_do_not_matter_to_a_distribution(file):
    """One row at a time or all at once, padded differently: the same weights come out."""
    weights = []
    for micro_tokens in (1, 8192):
        model = fresh("distribution")
        recipe = Recipe(learning_rate=3e-3, steps=4, batch_rows=8, micro_tokens=micro_tokens)
        train(model, file, recipe, label="toy", progress=False)
        weights.append(model.score.summary.weight.detach())
    torch.testing.assert_close(*weights, atol=2e-5, rtol=0)


def test_precision_changes_little_and_weights_much(file):
    def trained(**fields):
        model = fresh()
        recipe = Recipe(learning_rate=3e-3, steps=8, batch_rows=16, **fields)
        train(model, file, recipe, label="toy", progress=False)
        return model.score(torch.linspace(-1, 1, 32)[None])

    exact = trained()
    assert exact.equal(trained())  # a function of the recipe
    for precision in PRECISIONS:
        rounded = trained(precision=precision)
        torch.testing.assert_close(rounded, exact, atol=0.02, rtol=0.1)
        assert rounded.equal(exact) == (precision == "float32")
    assert not trained(grouped=True).equal(exact)
    assert not trained(weighting="trajectory_mean").equal(exact)


def test_the_callback_sees_every_step_and_may_switch_modes(file):
    model, seen = fresh(), []

    def after(step):
        assert model.training
        seen.append(step)
        model.eval()

    recipe = Recipe(learning_rate=1e-3, steps=3, batch_rows=4)
    done = train(model, file, recipe, label="toy", after_step=after, progress=False)
    assert seen == [1, 2, 3] and done["steps"] == 3


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "give epochs or steps"),
        ({"epochs": 1.0, "steps": 5}, "give epochs or steps"),
        ({"steps": 5, "weighting": "1/L"}, "weighting must be one of token_mean"),
        ({"steps": 5, "precision": "int8"}, "precision must be one of float32"),
    ],
)
def test_a_wrong_recipe_is_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Recipe(learning_rate=1e-3, **fields)
