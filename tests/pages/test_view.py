"""Which responses, which text per token and which numbers get onto the page?"""

import json
import re

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lenvm_rl.core import LengthBins, u_to_length
from lenvm_rl.model import (
    LengthValueModel,
    describe_policy,
    load_tokenizer,
    save_checkpoint,
    tokenizer_sha,
)
from lenvm_rl.model.forward import iter_logits
from lenvm_rl.pages.token_text import token_texts
from lenvm_rl.pages.view import (
    choose_rollouts,
    page_data,
    short_names,
    view_rollouts,
    view_text,
)
from lenvm_rl.rollouts import Rollout, RolloutWriter
from tests.tiny import make_policy, make_tokenizer


@pytest.fixture(scope="module")
def lenvms(tiny_policy, tmp_path_factory):
    """Two LenVMs of one policy with different heads and gammas."""
    root = tmp_path_factory.mktemp("lenvms")
    tokenizer = load_tokenizer(tiny_policy)
    for seed, gamma in enumerate((0.9, 0.95)):
        torch.manual_seed(seed)
        policy = describe_policy(str(tiny_policy), tokenizer)
        model = LengthValueModel.from_policy(tiny_policy, gamma=gamma, policy=policy)
        save_checkpoint(model, tokenizer, root / f"run{seed}" / "lenvm")
    return [root / "run0" / "lenvm", root / "run1" / "lenvm"]


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rollouts"
    with RolloutWriter(path, tokenizer_sha=tokenizer_sha(make_tokenizer()), vocab_size=48) as out:
        out.append(
            Rollout(
                prompt_id=f"p{p}",
                sample_id=s,
                prompt_ids=[2, 3 + p],
                response_ids=[5, 6, 7 + s, 8] if p == 2 else [5, 6, 7 + s, 1],
                finish_reason="length" if p == 2 else "stop",
            )
            for p in range(3)
            for s in range(2)
        )
    return path


def data_of(path):
    html = path.read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    return json.loads(found[1])


def test_numbers_are_those_of_each_model(lenvms, rollouts, tmp_path):
    figures = view_rollouts(lenvms, rollouts, tmp_path / "page.html")
    data = data_of(tmp_path / "page.html")
    assert figures["responses"] == 6 and figures["tokens"] == 24 and figures["left_out"] == 0
    assert figures["bytes"] == (tmp_path / "page.html").stat().st_size
    assert [m["name"] for m in data["models"]] == ["run0/lenvm", "run1/lenvm"]
    chosen = choose_rollouts(rollouts)
    for m, path in enumerate(lenvms):
        model = LengthValueModel.from_pretrained(path)
        gamma = model.config.gamma
        logits = {(r.prompt_id, r.sample_id): z for r, z in iter_logits(model, chosen.rows)}
        for response in data["responses"]:
            u = torch.sigmoid(logits[response["id"], response["sample"]].double()).tolist()
            numbers = response["series"][m]
            assert numbers["u"] == pytest.approx(u, abs=1e-6)
            lengths = [u_to_length(x, gamma=gamma).item() for x in u]
            assert numbers["length"] == pytest.approx(lengths, rel=1e-4)
            after = [*u[1:], 0.0]
            scores = [gamma * b - a + 1 - gamma for a, b in zip(u, after, strict=True)]
            if not response["ended"]:
                assert numbers["score"].pop() is None
                scores.pop()
            assert numbers["score"] == pytest.approx(scores, abs=1e-6)


def test_a_distribution_has_a_fan(tiny_policy, rollouts, tmp_path):
    """Its quantiles and, with a head of zeros, the bins' own: K equally likely ones."""
    bins, tokenizer = LengthBins((1, 2, 3, 4, 5)), load_tokenizer(tiny_policy)
    model = LengthValueModel.from_policy(
        tiny_policy,
        gamma=0.9,
        target="distribution",
        bins=bins.edges,
        policy=describe_policy(str(tiny_policy), tokenizer),
    )
    with torch.no_grad():
        for weight in model.score.parameters():
            weight.zero_()
    lenvm = save_checkpoint(model, tokenizer, tmp_path / "lenvm")
    (series,) = page_data([lenvm], choose_rollouts(rollouts, limit=1), title="t")["responses"][0][
        "series"
    ]
    assert series["fan"] == [[1] * 4, [1] * 4, [3] * 4, [4] * 4]
    assert series["length"][0] == pytest.approx(2.45, abs=0.1)  # of the mean u


def test_one_number_has_none(lenvms, rollouts):
    data = page_data(lenvms, choose_rollouts(rollouts, limit=1), title="t")
    assert [series["fan"] for series in data["responses"][0]["series"]] == [None, None]


def test_cut_responses_are_told_apart(lenvms, rollouts):
    data = page_data(lenvms[:1], choose_rollouts(rollouts), title="t")
    assert [r["ended"] for r in data["responses"]] == [True] * 4 + [False] * 2
    assert data["responses"][0]["special"] == [3] and data["responses"][5]["special"] == []


def test_prompts_are_chosen_in_the_order_asked(rollouts):
    chosen = choose_rollouts(rollouts, prompt_ids=["p2", "p0"], limit=3)
    assert [(r.prompt_id, r.sample_id) for r in chosen.rows] == [("p2", 0), ("p2", 1), ("p0", 0)]
    assert chosen.left_out == 1
    assert choose_rollouts(rollouts, limit=4).left_out == 2


def test_one_answer_of_each_prompt(rollouts):
    chosen = choose_rollouts(rollouts, per_prompt=1)
    assert [(r.prompt_id, r.sample_id) for r in chosen.rows] == [("p0", 0), ("p1", 0), ("p2", 0)]
    assert chosen.left_out == 3
    chosen = choose_rollouts(rollouts, prompt_ids=["p2", "p0"], per_prompt=1, limit=1)
    assert [r.prompt_id for r in chosen.rows] == ["p2"] and chosen.left_out == 3
    with pytest.raises(ValueError, match="per_prompt must be at least 1"):
        choose_rollouts(rollouts, per_prompt=0)


def test_text_is_tokenised_and_says_so(lenvms, tmp_path):
    view_text(lenvms[:1], "w2 w3", "w5 w6", tmp_path / "page.html")
    (response,) = data_of(tmp_path / "page.html")["responses"]
    assert "".join(response["tokens"]).split() == ["w5", "w6", "<eos>"]
    assert response["ended"] and "re-tokenised" in response["notes"][0]
    view_text(lenvms[:1], "w2 w3", "w5 w6", tmp_path / "cut.html", ended=False)
    (response,) = data_of(tmp_path / "cut.html")["responses"]
    assert len(response["tokens"]) == 2 and not response["ended"]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/lenvm"], ["lenvm"]),
        (["x/a", "x/b"], ["a", "b"]),
        (["x/1/lenvm", "x/2/lenvm"], ["1/lenvm", "2/lenvm"]),
    ],
)
def test_models_get_the_shortest_names(paths, names):
    assert short_names(paths) == names


def test_bad_input_gets_a_sentence(lenvms, rollouts, tiny_policy, tmp_path):
    out = tmp_path / "page.html"
    with pytest.raises(ValueError, match=r"no prompt_id 'p9'; it has e\.g\. 'p0'"):
        view_rollouts(lenvms, rollouts, out, prompt_ids=["p9"])
    with pytest.raises(ValueError, match="same LenVM was given twice"):
        view_rollouts([lenvms[0], lenvms[0]], rollouts, out)
    with pytest.raises(ValueError, match="at least one LenVM"):
        view_rollouts([], rollouts, out)
    with pytest.raises(ValueError, match="response is empty"):
        view_text(lenvms, "w2", "", out)
    with pytest.raises(ValueError, match="holds no LenVM"):
        view_rollouts([tiny_policy], rollouts, out)
    with pytest.raises(ValueError, match="context of 128"):
        view_text(lenvms, "w2", "w5 " * 200, out)
    other = tmp_path / "other"
    make_policy("llama").save_pretrained(other)
    make_tokenizer(prefix="v").save_pretrained(other)
    torch.manual_seed(0)
    foreign = LengthValueModel.from_policy(
        other, gamma=0.9, policy=describe_policy("other", make_tokenizer(prefix="v"))
    )
    save_checkpoint(foreign, make_tokenizer(prefix="v"), tmp_path / "foreign")
    with pytest.raises(ValueError, match="another tokenizer"):
        view_rollouts([lenvms[0], tmp_path / "foreign"], rollouts, out)
    assert not out.exists()


def byte_tokenizer():
    """One token per byte, so that every character beyond ASCII is spread over several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw)


@pytest.mark.parametrize("text", ["a b", "naïve 数学 🙂!", "  \n\n\tx ", "\ufffd\ufffd\ufffd."])
def test_pieces_of_text_add_up(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    pieces = token_texts(tokenizer, ids)
    assert len(pieces) == len(ids) == len(text.encode()) and "".join(pieces) == text


def test_a_character_belongs_to_the_token_that_completes_it():
    tokenizer = byte_tokenizer()
    assert token_texts(tokenizer, tokenizer("é🙂")["input_ids"]) == ["", "é", "", "", "", "🙂"]


def test_half_a_character_at_the_end_still_shows():
    tokenizer = byte_tokenizer()
    ids = tokenizer("a🙂")["input_ids"][:-1]
    pieces = token_texts(tokenizer, ids)
    assert pieces[0] == "a" and "".join(pieces[1:]) and len(pieces) == 4


def test_the_first_piece_keeps_its_space_after_the_prompt(tmp_path):
    raw = Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1, "?": 2}, unk_token="?"))
    raw.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    assert token_texts(tokenizer, [0, 1], before=[1, 2]) == [" a", " b"]
