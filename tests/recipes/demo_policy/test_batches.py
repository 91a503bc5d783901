"""Training batches: which tokens carry a loss, and with what weight."""

from dataclasses import replace

import torch

from lenvm_rl.demo.task import MAX_OPERANDS, STYLES, grade, style
from recipes.demo_policy.batches import (
    IGNORE,
    Example,
    TrainConfig,
    encode,
    make_examples,
    micro_batches,
)
from recipes.demo_policy.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()
SMALL = TrainConfig(
    responses=6, drills=10, facts=4, facts_from=50, curriculum=100, micro_tokens=512
)


def of_kind(examples, kind):
    return [example for example in examples if example.kind == kind]


def operands(example):
    return example.prompt.count("+") + example.prompt.count("-") + 1


def test_examples_depend_on_seed_and_step_alone():
    assert make_examples(7, SMALL) == make_examples(7, replace(SMALL, steps=99))
    assert make_examples(7, SMALL) != make_examples(8, SMALL)
    assert make_examples(7, SMALL) != make_examples(7, replace(SMALL, seed=1))


def test_curriculum_grows_the_longest_chain():
    many = replace(SMALL, responses=200, drills=200, facts=0)
    longest = {
        step: max(operands(example) for example in make_examples(step, many))
        for step in (0, 50, 100, 5000)
    }
    assert longest == {0: 4, 50: 8, 100: MAX_OPERANDS, 5000: MAX_OPERANDS}


def test_facts_come_late_and_are_right():
    assert not of_kind(make_examples(49, SMALL), "fact")
    facts = of_kind(make_examples(50, SMALL), "fact")
    assert len(facts) == 4
    for fact in facts:
        if style(fact.text) == "terse":
            for equation in fact.text.rstrip(";").split(";"):
                left, right = equation.split("=")
                assert eval(left) == int(right)


def test_responses_have_every_style_and_drills_are_right_and_bare():
    examples = make_examples(500, replace(SMALL, responses=200, drills=50))
    assert {style(example.text) for example in of_kind(examples, "response")} == set(STYLES)
    for drill in of_kind(examples, "drill"):
        assert style(drill.text) == "bare"
        assert grade(drill.text, eval(drill.prompt.removesuffix(" = ?")))


def labelled_text(example):
    ids, labels = encode(example, TOKENIZER)
    assert len(ids) == len(labels)
    # A label is the token at its own position: the shift is the loss's.
    assert all(label in (IGNORE, token) for token, label in zip(ids, labels, strict=True))
    return TOKENIZER.decode([label for label in labels if label != IGNORE])


def test_labels_of_each_kind():
    text = "1 + 2 = 3; the answer is 3"
    assert labelled_text(Example("response", "1 + 2 = ?", text)) == f"{text}<eos>"
    assert labelled_text(Example("drill", "1 + 2 = ?", "the answer is 3")) == "3"
    assert labelled_text(Example("fact", None, "1 + 2 = 3; 9 - 4 = 5;")) == "3 5"
    spelled_out = "then we take 1 and add 2 to get 3. next we take 9 and subtract 4 to get 5."
    assert labelled_text(Example("fact", None, spelled_out)) == "3 5"


def test_pieces_hold_every_example_once_within_the_limit():
    rows = []
    for piece in micro_batches(60, SMALL, TOKENIZER):
        assert piece.ids.shape == piece.labels.shape
        assert piece.weights.shape == (len(piece.kinds), 1)
        assert piece.ids.numel() <= SMALL.micro_tokens or len(piece.ids) == 1
        for ids, kind in zip(piece.ids.tolist(), piece.kinds, strict=True):
            while ids[-1] == TOKENIZER.pad_token_id:
                ids.pop()
            rows.append((kind, ids))
    expected = [(e.kind, encode(e, TOKENIZER)[0]) for e in make_examples(60, SMALL)]
    assert sorted(rows) == sorted(expected)


def test_weights_sum_to_one_and_favour_drills_and_facts():
    total, weights = 0.0, {}
    for piece in micro_batches(60, SMALL, TOKENIZER):
        total += float(((piece.labels != IGNORE) * piece.weights).double().sum())
        for kind, weight in zip(piece.kinds, piece.weights[:, 0], strict=True):
            weights.setdefault(kind, set()).add(weight.item())
    torch.testing.assert_close(total, 1.0, atol=1e-5, rtol=0)
    (response,), (drill,), (fact,) = (weights[kind] for kind in ("response", "drill", "fact"))
    assert drill == fact
    torch.testing.assert_close(drill / response, SMALL.drill_weight)
