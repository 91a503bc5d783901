"""A LenVM of the whole distribution: every gamma, quantiles, files, refusals."""

import json

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForTokenClassification

from lenvm_rl.core import LengthBins, logit_to_length, logit_to_value
from lenvm_rl.model import LengthValueConfig, LengthValueModel, save_checkpoint, to_distribution
from lenvm_rl.model.forward import iter_logits, iter_outputs
from lenvm_rl.rollouts import Rollout
from tests.tiny import VOCAB

BINS = LengthBins.up_to(60)
GAMMA = 0.97


def ids(rows=2, columns=7):
    return torch.randint(2, VOCAB, (rows, columns), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def model(policy_dir):
    torch.manual_seed(1)
    return LengthValueModel.from_policy(
        policy_dir, gamma=GAMMA, target="distribution", bins=BINS.edges
    ).eval()


@torch.no_grad()
def test_everything_is_read_off_the_outputs(model):
    outputs = model.length_outputs(ids())
    assert outputs.shape == (2, 7, len(BINS)) and outputs.dtype == torch.float32
    d = BINS.of(outputs)
    z = model.length_logits(ids())
    assert torch.equal(z, d.logit(GAMMA))
    assert torch.equal(model.values(ids()), logit_to_value(z))
    assert torch.equal(model.predicted_lengths(ids()), logit_to_length(z, gamma=GAMMA))
    assert torch.equal(model.values(ids(), gamma=0.5), -d.u(0.5))
    said = model.distribution(ids())
    assert torch.equal(said.mean(), d.mean()) and torch.equal(said.quantile(0.9), d.quantile(0.9))
    assert torch.equal(model(ids()).logits, model.values(ids())[..., None])
    model.config.head_output = "logit"
    assert torch.equal(model(ids()).logits, outputs)


def test_gamma_is_that_of_the_configuration_at_use(model):
    with torch.no_grad():
        before = model.length_logits(ids())
        model.config.gamma = 0.9
        assert torch.equal(model.length_logits(ids()), model.distribution(ids()).logit(0.9))
    assert not torch.equal(before, model.length_logits(ids()))


@pytest.mark.parametrize("head", ["state", "candidate"])
def test_save_and_load(model, tokenizer, tmp_path, head):
    if head == "candidate":
        model.config.head = head
        model = LengthValueModel(model.config).eval()
    path = save_checkpoint(model, tokenizer, tmp_path / "lenvm")
    for again in (
        LengthValueModel.from_pretrained(path),
        AutoModelForTokenClassification.from_pretrained(path),
    ):
        assert again.config.length_bins == BINS and again.config.num_labels == len(BINS)
        with torch.no_grad():
            assert_close(again.length_logits(ids()), model.length_logits(ids()), rtol=0, atol=1e-5)
    card = (path / "README.md").read_text()
    assert f"the distribution of the tokens to go, in {len(BINS)} bins" in card


@torch.inference_mode()
def test_streams_of_logits_and_outputs_agree(model):
    rows = [
        Rollout(
            prompt_id=str(i),
            sample_id=0,
            prompt_ids=[5, 6],
            response_ids=[7] * i + [1],
            finish_reason="stop",
        )
        for i in range(4)
    ]
    z = {row.prompt_id: x for row, x in iter_logits(model, rows)}
    for row, outputs in iter_outputs(model, rows):
        assert outputs.shape == (row.length, len(BINS))
        assert_close(BINS.of(outputs).logit(GAMMA), z[row.prompt_id])


def test_a_checkpoint_of_one_value_becomes_a_distribution(policy_dir):
    torch.manual_seed(1)
    plain = LengthValueModel.from_policy(policy_dir, gamma=GAMMA)
    wide = to_distribution(plain, BINS)
    assert torch.equal(wide.score.fc.weight, plain.score.fc.weight)
    assert wide.length_outputs(ids()).shape[-1] == len(BINS)
    assert wide.config.target == "distribution" and plain.config.target == "return"


def test_one_value_has_no_quantiles(policy_dir):
    plain = LengthValueModel.from_policy(policy_dir, gamma=GAMMA)
    sentence = r"one number per state \(target 'return'\).*no quantiles.*lenvm init"
    with pytest.raises(ValueError, match=sentence):
        plain.distribution(ids())
    with pytest.raises(ValueError, match=sentence):
        plain.values(ids(), gamma=0.5)
    assert torch.equal(plain.values(ids(), gamma=GAMMA), plain.values(ids()))
    assert plain.config.read(torch.ones(3)).tolist() == [1, 1, 1]


def test_bins_belong_to_a_distribution(model):
    trunk = model.config.text_config
    for fields in ({"target": "distribution"}, {"bins": list(BINS.edges)}):
        with pytest.raises(ValueError, match=r"a distribution needs bins, other targets have none"):
            LengthValueConfig(text_config=trunk, **fields)
    with pytest.raises(ValueError, match="rising edges"):
        LengthValueConfig(text_config=trunk, target="distribution", bins=[1, 5, 4])
    stored = LengthValueConfig.from_dict(json.loads(model.config.to_json_string(use_diff=False)))
    assert stored.length_bins == BINS
