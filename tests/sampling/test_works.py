"""What `lenvm init` promises of a trunk is what happens with it, for some fifty architectures."""

import pytest
import torch
import transformers

from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.length_value_model import check_decoder
from lenvm_rl.sampling.transformers.sampler import ContinuousSampler, Request
from lenvm_rl.sampling.works import what_works
from tests.guidance.trunks import TRUNKS, make_lenvm, make_trunk
from tests.tiny import FORWARD, make_policy, make_tokenizer

LISTED_WITH = "5.10."
"""The version of transformers with which `trunks` was listed."""
DECODERS = [name for name, (_, _, works) in TRUNKS.items() if works is not None]


@pytest.mark.parametrize("name", DECODERS)
def test_what_works_is_known(name):
    model = make_lenvm(name)
    check_decoder(model.model, name)
    found = what_works(model)
    works = "".join(letter for letter, why in zip("pst", found.values(), strict=True) if not why)
    listed = TRUNKS[name][2]
    if transformers.__version__.startswith(LISTED_WITH):
        assert works == listed, found
    assert set(works) >= set(listed), found  # later versions move architectures to the interface
    for why in found.values():
        if why is not None:
            assert why.endswith(".") and ": " in why and len(why) < 400, why


@pytest.mark.parametrize("name", [name for name in TRUNKS if name not in DECODERS])
def test_what_is_no_decoder_is_refused(name, tmp_path):
    make_trunk(name).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="e.g. Qwen or Llama"):
        LengthValueModel.from_policy(tmp_path)


@pytest.mark.parametrize("name", ["llama", "qwen3_next", "bert", "xlnet", "mamba", "gpt_oss"])
def test_causal_means_that_a_later_token_or_padding_moves_no_earlier_state(name):
    trunk = make_trunk(name)
    ids = torch.arange(3, 15)[None]
    other, padded = ids.clone(), ids.clone()
    other[0, 8:] += 20
    padded[0, 8:] = 0
    with torch.no_grad():
        states = [trunk(input_ids=x).last_hidden_state[0, :8] for x in (ids, other, padded)]
    moved = max((state - states[0]).abs().max().item() for state in states[1:])
    if name in DECODERS:
        check_decoder(trunk, name)
        assert moved < FORWARD
    else:
        with pytest.raises(ValueError, match="is no decoder: its states see later tokens"):
            check_decoder(trunk, name)
        assert moved > 100 * FORWARD


def test_a_policy_that_cannot_be_batched_is_refused_before_it_samples(tmp_path):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_config(make_trunk("stablelm").config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="StableLmForCausalLM cannot be batched.*with vLLM"):
        ContinuousSampler.from_pretrained(str(tmp_path))


def test_models_are_left_as_they_were():
    model = make_lenvm("llama").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    what_works(model)
    assert model.training and model.model.config._attn_implementation != "eager"
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    sampler = ContinuousSampler(make_policy("llama"), eos_token_ids=[1])
    assert sampler.generate([Request([2, 3], max_tokens=3)])[0].token_ids


def test_kin_may_lend_a_tokenizer_and_strangers_may_not():
    from lenvm_rl.model import tokens_of_another_meaning

    own = make_tokenizer()
    kin = make_tokenizer()
    assert tokens_of_another_meaning(kin, own, 48) == 0
    kin.add_special_tokens({"additional_special_tokens": ["<think>"]})
    assert tokens_of_another_meaning(kin, own, 64) == 1
    with pytest.raises(ValueError, match="the id 48, the trunk embeds 48 tokens"):
        tokens_of_another_meaning(kin, own, 48)
    with pytest.raises(ValueError, match="46 of 48 ids .* it would read nonsense"):
        tokens_of_another_meaning(make_tokenizer(prefix="v"), own, 48)
