"""The card beside a saved LenVM says what its configuration knows, and nothing that it does not."""

import pytest

from lenvm_rl.model import LengthValueConfig, LengthValueModel, describe_policy, save_checkpoint
from lenvm_rl.model.config import model_card
from tests.tiny import make_policy, make_tokenizer


def make(**fields):
    return LengthValueConfig(text_config=make_policy("llama").config, **fields)


def test_a_saved_model_has_a_card_with_its_facts(tmp_path):
    tokenizer = make_tokenizer()
    config = make(
        gamma=0.997,
        policy=describe_policy("lab/policy", tokenizer, revision="abc"),
        sampling={"temperature": 1.0, "top_p": 0.9, "seed": None},
        training={"rows": 7408, "tokens": 541234},
        measured={"mre_s0": 0.0613, "mre_s0_noise_floor": 0.0571, "step": 174},
    )
    path = save_checkpoint(LengthValueModel(config), tokenizer, tmp_path / "lenvm")
    card = (path / "README.md").read_text()
    for line in (
        "| policy | lab/policy, revision abc |",
        "| gamma | 0.997 per token |",
        "| sampling | temperature 1, top_p 0.9 |",
        "| trained on | rows 7408, tokens 541234 |",
        "| measured | mre_s0 0.0613, mre_s0_noise_floor 0.0571, step 174 |",
        "| head | state, on a llama trunk of width 32 |",
    ):
        assert line in card, card
    assert "EOS included" in card and card.startswith("---\nlibrary_name: lenvm-rl\n")
    again = LengthValueModel.from_pretrained(path).config
    assert again.training == config.training and again.measured == config.measured


def test_what_is_not_known_is_left_out():
    card = model_card(make())
    assert "not chosen yet" in card and "an unnamed policy" in card
    for word in ("| sampling", "| trained on", "| measured", "| length scale", "None", "nan"):
        assert word not in card


@pytest.mark.parametrize("fields", [{"answers": "correct"}, {"frozen_trunk": True}])
def test_what_changes_the_meaning_of_a_length_is_said(fields):
    card = model_card(make(gamma=0.9, **fields))
    assert ("right ones alone" in card) == (fields.get("answers") == "correct")
    assert ("that was not trained" in card) == bool(fields.get("frozen_trunk"))
