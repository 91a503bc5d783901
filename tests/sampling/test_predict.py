"""Predictions of odd rows are errors of their own; the others are as they would be alone."""

import pytest
import torch

from lenvm_rl.core import LengthBins
from lenvm_rl.model import LengthValueModel, from_scratch, save_checkpoint, tokenizer_sha
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts import Rollout, RolloutWriter
from lenvm_rl.sampling.predict import predict_prompts, predict_rollouts
from tests.tiny import VOCAB, make_tokenizer

SHA = tokenizer_sha(make_tokenizer())
BINS = LengthBins.up_to(50)


@pytest.fixture
def lenvm(tmp_path):
    tokenizer = make_tokenizer()
    model = from_scratch(tokenizer, hidden_size=32, num_layers=1, max_positions=32, gamma=0.9)
    return save_checkpoint(model, tokenizer, tmp_path / "lenvm")


def asked(name, text):
    return Prompt(prompt_id=name, messages=[{"role": "user", "content": text}])


def test_a_prompt_that_cannot_be_read_is_an_error_of_its_own(lenvm):
    talk = Prompt(prompt_id="talk", messages=[{"role": "system", "content": "w3"}])
    good = asked("good", "w2 w3")
    rows = list(
        predict_prompts(lenvm, [asked("half", "\ud83d"), good, asked("long", "w5 " * 40), talk])
    )
    assert [row["prompt_id"] for row in rows] == ["half", "good", "long", "talk"]
    assert rows[1] == next(predict_prompts(lenvm, [good]))
    assert "Unicode" in rows[0]["error"] or "half of a pair" in rows[0]["error"]
    assert "context of 32" in rows[2]["error"] and "chat template" in rows[3]["error"]


def test_ids_that_the_trunk_does_not_know_are_a_sentence(lenvm, tmp_path):
    """A policy's vocabulary may be padded further than the one of the LenVM's trunk."""
    responses = [[3, 4, 1], [3, VOCAB + 2, 1], [5, VOCAB + 2]]
    with RolloutWriter(tmp_path / "rows", tokenizer_sha=SHA, vocab_size=VOCAB + 9) as writer:
        writer.append(
            Rollout(
                prompt_id=str(i),
                sample_id=0,
                prompt_ids=[5],
                response_ids=ids,
                finish_reason="length",
            )
            for i, ids in enumerate(responses)
        )
    found = {row["prompt_id"]: row for row in predict_rollouts(lenvm, tmp_path / "rows")}
    assert f"token id {VOCAB + 2} is beyond the {VOCAB} ids" in found["1"].pop("error")
    assert found["1"] == {
        "prompt_id": "1", "sample_id": 0, "finish_reason": "length", "tokens": 3
    }  # fmt: skip
    assert len(found["0"]["remaining_lengths"]) == 3
    assert len(found["2"]["remaining_lengths"]) == 2, "the last token is never read"


@pytest.fixture
def wide(tmp_path):
    tokenizer, fields = make_tokenizer(), {"target": "distribution", "bins": list(BINS.edges)}
    torch.manual_seed(0)
    model = from_scratch(
        tokenizer, hidden_size=32, num_layers=1, max_positions=32, gamma=0.9, **fields
    )
    return save_checkpoint(model, tokenizer, tmp_path / "wide")


def test_a_distribution_gives_quantiles_and_the_chance_of_truncation(wide, tmp_path):
    response = [3, 4, 5, 6, 1]
    with RolloutWriter(tmp_path / "rows", tokenizer_sha=SHA, vocab_size=VOCAB) as writer:
        writer.append(
            [
                Rollout(
                    prompt_id="a",
                    sample_id=0,
                    prompt_ids=[2, 3],
                    response_ids=response,
                    finish_reason="stop",
                )
            ]
        )
    with torch.no_grad():
        model = LengthValueModel.from_pretrained(wide).eval()
        d = model.distribution(torch.tensor([[2, 3, *response[:-1]]]))[0, 1:]
    (along,) = predict_rollouts(wide, tmp_path / "rows", max_tokens=7)
    assert along["p90"] == d.quantile(0.9).tolist()
    left = torch.tensor([7.0, 6, 5, 4, 3])
    assert along["p_truncated"] == pytest.approx(d.longer_than(left).tolist(), abs=1e-4)
    assert along["mean"] == pytest.approx(d.mean().tolist(), abs=0.01)
    (row,) = predict_prompts(wide, [asked("a", "w2 w3")], gamma=0.5)
    assert {"mean", "p10", "p50", "p90", "p99"} < row.keys() and "p_truncated" not in row
    assert row["p10"] <= row["p50"] <= row["p90"] <= row["p99"]
    (other,) = predict_prompts(wide, [asked("a", "w2 w3")])
    assert other["value"] > row["value"], "a token weighs 1 - gamma"
    assert other["mean"] == row["mean"]


@pytest.mark.parametrize("question", [{"max_tokens": 9}, {"gamma": 0.5}])
def test_one_gamma_is_no_distribution(lenvm, question):
    with pytest.raises(ValueError, match=r"one number per state.*no quantiles.*Train one with"):
        predict_prompts(lenvm, [asked("a", "w2 w3")], **question)
