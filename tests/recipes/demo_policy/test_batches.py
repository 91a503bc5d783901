"""Training batches: ways to ask, which tokens carry a loss, packing."""

from dataclasses import replace

import pytest

from lenvm_rl.demo import task
from recipes.demo_policy.batches import (
    IGNORE,
    Example,
    TrainConfig,
    encode,
    make_examples,
    micro_batches,
)
from recipes.demo_policy.solutions import Piece
from recipes.demo_policy.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()
SMALL = TrainConfig(responses=12, curriculum=100, micro_tokens=512)


def question(example):
    return example.messages[0]["content"]


def text_of(example):
    return "".join(piece.text for piece in example.pieces)


def test_examples_depend_on_seed_and_step_alone():
    assert make_examples(7, SMALL) == make_examples(7, replace(SMALL, steps=99))
    assert make_examples(7, SMALL) != make_examples(8, SMALL)
    assert make_examples(7, SMALL) != make_examples(7, replace(SMALL, seed=1))


def test_curriculum_grows_the_operands():
    many = replace(SMALL, responses=200, asked_length=0.0)
    longest = {
        step: max(
            len(word)
            for example in make_examples(step, many)
            for word in question(example).split()
            if word.isdecimal()
        )
        for step in (0, 49, 50, 99, 100, 5000)
    }
    assert longest == {0: 2, 49: 2, 50: 3, 99: 3, 100: 4, 5000: 4}


def test_problems_are_asked_in_all_ways_at_the_stated_shares():
    examples = make_examples(500, replace(SMALL, responses=1000))
    asked = [question(example) for example in examples]
    for found, share in (
        (["*" in text for text in asked], SMALL.products),
        ([text.endswith(" /no_think") for text in asked], SMALL.no_thinking),
        ([text.startswith("about ") for text in asked], SMALL.asked_length),
    ):
        assert sum(found) / 1000 == pytest.approx(share, abs=0.05)  # 3 standard errors: .046
    styles = {task.style(text_of(example)) for example in examples}
    assert styles == set(task.STYLES)
    for example in examples:
        if question(example).endswith(" /no_think"):
            assert task.style(text_of(example)) == "direct"


def labelled_text(example):
    ids, labels = encode(example, TOKENIZER)
    assert len(ids) == len(labels)
    # A label is the token at its own position: the shift is the loss's.
    assert all(label in (IGNORE, token) for token, label in zip(ids, labels, strict=True))
    return TOKENIZER.decode([label for label in labels if label != IGNORE])


def test_a_slip_is_read_and_not_learned():
    messages = task.messages(task.Problem((1, 2)))
    pieces = [Piece("<think>1 + 2 = "), Piece("4", is_slip=True), Piece("; wait, ")]
    example = Example(messages, [*pieces, Piece("no</think>the answer is 3")])
    ids, _ = encode(example, TOKENIZER)
    assert TOKENIZER.decode(ids) == (
        "<|user|>1 + 2 = ?<|assistant|><think>1 + 2 = 4; wait, no</think>the answer is 3<eos>"
    )
    assert labelled_text(example) == "<think>1 + 2 = ; wait, no</think>the answer is 3<eos>"


def test_the_loss_is_on_the_whole_response_but_slips():
    examples = make_examples(300, replace(SMALL, responses=300))
    assert any(piece.is_slip for example in examples for piece in example.pieces)
    for example in examples:
        learned = "".join(piece.text for piece in example.pieces if not piece.is_slip)
        assert labelled_text(example) == f"{learned}<eos>"


def test_pieces_hold_every_example_once_within_the_limit():
    rows, labels = [], 0
    batch = micro_batches(60, SMALL, TOKENIZER)
    for piece in batch:
        assert piece.ids.shape == piece.labels.shape
        assert piece.ids.numel() <= SMALL.micro_tokens or len(piece.ids) == 1
        labels += int((piece.labels != IGNORE).sum())
        for ids in piece.ids.tolist():
            while ids[-1] == TOKENIZER.pad_token_id:
                ids.pop()
            rows.append(ids)
    assert sorted(rows) == sorted(encode(e, TOKENIZER)[0] for e in make_examples(60, SMALL))
    assert len(batch) > 1 and {piece.total for piece in batch} == {labels}
