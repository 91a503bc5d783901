"""A LenVM on any trunk: exact head arithmetic, storage that round-trips, refusals in sentences."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification

from lenvm_rl.core import logit_to_length, logit_to_value
from lenvm_rl.model import (
    LengthValueConfig,
    LengthValueModel,
    ValueHead,
    check_tokenizer,
    describe_policy,
    from_scratch,
    is_lenvm_checkpoint,
    save_checkpoint,
    tokenizer_sha,
)
from tests.tiny import FORWARD, VOCAB, make_policy, make_tokenizer

GAMMA = 0.97


@pytest.fixture
def model(policy_dir, tokenizer):
    torch.manual_seed(1)
    policy = describe_policy("tiny", tokenizer)
    return LengthValueModel.from_policy(policy_dir, gamma=GAMMA, policy=policy).eval()


def ids(rows=2, columns=9, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCAB, (rows, columns), generator=generator)


def test_trunk_is_the_policys_and_there_is_no_output_embedding(model, policy_dir):
    policy = AutoModelForCausalLM.from_pretrained(policy_dir).eval()
    with torch.no_grad():
        expected = policy.model(ids()).last_hidden_state
        assert torch.equal(model.model(ids()).last_hidden_state, expected)
    assert not any("lm_head" in name for name, _ in model.named_parameters())
    assert model.config.text_config.model_type == policy.config.model_type


def test_outputs_agree_with_the_formulas(model):
    with torch.no_grad():
        logit = model.length_logits(ids())
        assert logit.shape == (2, 9) and logit.dtype == torch.float32
        assert torch.equal(model(ids()).logits.squeeze(-1), logit_to_value(logit))
        assert torch.equal(model.values(ids()), -torch.sigmoid(logit))
        assert torch.equal(model.predicted_lengths(ids()), logit_to_length(logit, gamma=GAMMA))
        model.config.head_output = "logit"
        assert torch.equal(model(ids()).logits.squeeze(-1), logit)


def test_head_equals_a_hand_written_one_under_bfloat16_and_autocast():
    torch.manual_seed(0)
    head = ValueHead(8, 6)
    x = torch.randn(3, 5, 8)
    hidden = x @ head.fc.weight.T + head.fc.bias
    expected = ((hidden * torch.sigmoid(hidden)) @ head.summary.weight.T + head.summary.bias)[
        ..., 0
    ]
    torch.testing.assert_close(head(x), expected)

    half = ValueHead(8, 6).to(torch.bfloat16)
    half.load_state_dict(head.state_dict())
    full = ValueHead(8, 6)
    full.load_state_dict(half.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = half(x.to(torch.bfloat16))
    assert got.dtype == torch.float32
    assert torch.equal(got, full(x.to(torch.bfloat16).float()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load_give_the_same_values(model, tokenizer, tmp_path, dtype):
    first = save_checkpoint(model, tokenizer, tmp_path / "first")
    model = LengthValueModel.from_pretrained(first, dtype=dtype)
    model.config.head_output = "logit"
    path = save_checkpoint(model, tokenizer, tmp_path / "lenvm")
    assert is_lenvm_checkpoint(path)
    again = LengthValueModel.from_pretrained(path, gamma=GAMMA, tokenizer=tokenizer, dtype=dtype)
    with torch.no_grad():
        got, expected = again.length_logits(ids()), model.length_logits(ids())
    torch.testing.assert_close(got, expected, atol=FORWARD, rtol=0)
    assert again.dtype == dtype
    assert (again.config.gamma, again.config.target) == (GAMMA, "return")
    assert again.config.policy["name"] == "tiny"
    # a checkpoint is read by verl's critics, whose convention is the value itself
    assert again.config.head_output == "value" and model.config.head_output == "logit"


def test_loads_by_the_path_that_verls_critic_takes(model, tokenizer, tmp_path):
    path = save_checkpoint(model, tokenizer, tmp_path / "lenvm")
    loaded = AutoModelForTokenClassification.from_pretrained(
        path, dtype=torch.float32, attn_implementation="flash_attention_2"
    ).eval()
    with torch.no_grad():
        assert torch.equal(loaded(ids()).logits, model(ids()).logits)
    assert "ForTokenClassification" in loaded.config.architectures[0]
    assert set(loaded._no_split_modules) == set(model.model._no_split_modules)


def test_saving_replaces_a_checkpoint_and_leaves_no_partial_one(model, tokenizer, tmp_path):
    path = save_checkpoint(model, tokenizer, tmp_path / "lenvm")
    model.config.gamma = 0.9
    save_checkpoint(model, tokenizer, path)
    assert json.loads((path / "config.json").read_text())["gamma"] == 0.9
    assert [p.name for p in tmp_path.iterdir()] == ["lenvm"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="something else than a LenVM"):
        save_checkpoint(model, tokenizer, tmp_path / "other")


def test_padding_never_matters(model):
    row = ids(1, 6)
    pad = torch.zeros(1, 3, dtype=torch.long)
    with torch.no_grad():
        alone = model.length_logits(row)
        right = model.length_logits(
            torch.cat([row, pad], 1), attention_mask=torch.tensor([[1] * 6 + [0] * 3])
        )
    torch.testing.assert_close(right[:, :6], alone, atol=FORWARD, rtol=0)


def test_packed_rows_do_not_see_each_other(model):
    a, b = ids(1, 5, seed=5), ids(1, 4, seed=6)
    packed = torch.cat([a, b], 1)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]])
    with torch.no_grad():
        got = model.length_logits(packed, position_ids=positions)
        expected = torch.cat([model.length_logits(a), model.length_logits(b)], 1)
        leaking = model.length_logits(packed)
    torch.testing.assert_close(got, expected, atol=FORWARD, rtol=0)
    assert (leaking - expected)[:, 5:].abs().max() > 1e-4


def test_gradients_reach_head_and_trunk_with_checkpointing(model):
    model.train()
    model.length_logits(ids()).square().mean().backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert all(g.abs().sum() > 0 for name, g in plain.items() if "weight" in name)
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model.length_logits(ids()).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], msg=name)


def test_fresh_trunk_over_a_tokenizer(tokenizer, tmp_path):
    torch.manual_seed(0)
    model = from_scratch(tokenizer, hidden_size=64, num_layers=1, gamma=GAMMA, policy_name="p")
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.policy == describe_policy("p", tokenizer)
    path = save_checkpoint(model, tokenizer, tmp_path / "fresh")
    again = LengthValueModel.from_pretrained(path)
    with torch.no_grad():
        assert torch.equal(again.values(ids()), model.eval().values(ids()))
    with pytest.raises(ValueError, match="does not divide"):
        from_scratch(tokenizer, hidden_size=65, num_heads=2, num_layers=1)


def test_a_wrong_gamma_or_tokenizer_is_refused(model, tokenizer, tmp_path):
    path = save_checkpoint(model, tokenizer, tmp_path / "lenvm")
    with pytest.raises(ValueError, match=r"gamma 0\.99 was given.*0\.97.*Leave gamma out"):
        LengthValueModel.from_pretrained(path, gamma=0.99)
    with pytest.raises(ValueError, match="another tokenizer"):
        LengthValueModel.from_pretrained(path, tokenizer=make_tokenizer(prefix="x"))
    for bad in (0, 1, 1.2, float("nan")):
        with pytest.raises(ValueError, match="gamma"):
            LengthValueConfig(text_config=model.config.text_config, gamma=bad)


def test_other_checkpoints_are_refused_with_a_remedy(policy_dir, model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="holds no LenVM.*lenvm init"):
        LengthValueModel.from_pretrained(policy_dir)
    path = save_checkpoint(model, tokenizer, tmp_path / "lenvm")
    with pytest.raises(ValueError, match="LenVM already"):
        LengthValueModel.from_policy(path, gamma=GAMMA)
    # weights without a head would predict noise
    model.model.save_pretrained(tmp_path / "headless")
    (tmp_path / "headless" / "config.json").write_text((path / "config.json").read_text())
    with pytest.raises(ValueError, match="lack the value head"):
        LengthValueModel.from_pretrained(tmp_path / "headless")


def test_unknown_choices_and_a_missing_gamma_are_named(model):
    trunk = model.config.text_config
    with pytest.raises(ValueError, match="target must be one of return"):
        LengthValueConfig(text_config=trunk, target="distance")
    with pytest.raises(ValueError, match="head_output must be one of"):
        LengthValueConfig(text_config=trunk, head_output="probability")
    with pytest.raises(ValueError, match="text_config"):
        LengthValueConfig()
    model.config.gamma = None
    with pytest.raises(ValueError, match="no gamma yet"):
        model.values(ids())


def test_tokenizer_fingerprint_is_about_ids_alone(tokenizer):
    same = make_tokenizer()
    same.eos_token = "w5"
    same.chat_template = "{{ messages }}"
    assert tokenizer_sha(same) == tokenizer_sha(tokenizer)
    assert tokenizer_sha(make_tokenizer(VOCAB + 1)) != tokenizer_sha(tokenizer)
    config = LengthValueConfig(text_config=make_policy("qwen2").config)
    check_tokenizer(config, tokenizer)  # a model that names no tokenizer accepts any
    assert config.policy is None


def test_a_trunk_without_a_standard_field_is_named():
    trunk = AutoConfig.for_model("opt", vocab_size=48, hidden_size=32, num_attention_heads=4)
    config = LengthValueConfig(text_config=trunk)
    assert config.hidden_size == 32 and config.num_key_value_heads == 4  # one per query head
    assert not hasattr(config, "intermediate_size")
    with pytest.raises(AttributeError, match="opt trunk has no intermediate_size.*Qwen"):
        config.intermediate_size  # noqa: B018
