"""A candidate's value from one hidden state equals the model's own, however the row came there."""

import random

import pytest
import torch

from lenvm_rl.guidance import CandidateScorer, GuidanceSettings, Guide, GuidedRow, History
from lenvm_rl.guidance.exact.scorer import ExactScorer
from lenvm_rl.guidance.heads.q_head import PolicyHeadScorer, QHeadScorer, make_scorer
from lenvm_rl.model import LengthValueConfig, LengthValueModel
from tests.tiny import VOCAB, make_policy


def make_lenvm(**fields) -> LengthValueModel:
    config = make_policy("llama", initializer_range=0.2).config
    torch.manual_seed(1)
    fields = {"head": "candidate", "gamma": 0.97, **fields}
    return LengthValueModel(LengthValueConfig(text_config=config, **fields)).eval()


@pytest.fixture(scope="module")
def lenvm():
    return make_lenvm()


@torch.inference_mode()
def recomputed(model, tokens, candidates):
    rows = torch.tensor([[*tokens, candidate] for candidate in candidates])
    return model.length_logits(rows)[:, -1]


def test_values_equal_a_full_recompute_over_growing_skipping_and_returning_rows(lenvm):
    choose = random.Random(0)
    scorer = QHeadScorer(lenvm, slots=4, max_length=100, chunk_tokens=7)
    assert isinstance(scorer, CandidateScorer)
    shared = [choose.randrange(2, VOCAB) for _ in range(25)]
    rows = {}
    for _ in range(60):
        if len(rows) < 4:
            n = choose.randrange(1, 25)
            history = History(shared[:n], [])
            rows[scorer.open(history)] = history
        elif choose.random() < 0.2:  # preempted: closed, and opened again with all it had
            slot = choose.choice(list(rows))
            history = rows.pop(slot)
            scorer.close(slot)
            rows[scorer.open(history)] = history
        elif choose.random() < 0.1:
            slot = choose.choice(list(rows))
            scorer.close(slot)
            rows.pop(slot)
        for history in rows.values():
            history.output += [
                choose.randrange(2, VOCAB) for _ in range(choose.choice([0, 1, 1, 3]))
            ]
        some = [slot for slot in rows if choose.random() < 0.7]
        if not some:
            continue
        ids = torch.randint(2, VOCAB, (len(some), 9))
        mask = torch.rand(ids.shape) < 0.8
        z = scorer.score(some, [rows[slot] for slot in some], ids, mask)
        for i, slot in enumerate(some):
            expected = recomputed(lenvm, rows[slot].tail(0), ids[i].tolist())
            torch.testing.assert_close(z[i], expected.masked_fill(~mask[i], 0.0), atol=1e-5, rtol=0)


def test_a_step_runs_one_token_per_row_whatever_the_candidates(lenvm):
    scorer = QHeadScorer(lenvm, slots=2, max_length=60)
    history = History([5, 6, 7], [])
    slot = scorer.open(history)
    every = torch.arange(VOCAB)[None]
    scorer.score([slot], [history], every, torch.ones_like(every, dtype=torch.bool))
    before = scorer.stats.caught_up
    for token in (8, 9):
        history.output.append(token)
        scorer.score([slot], [history], every, torch.ones_like(every, dtype=torch.bool))
    assert scorer.stats.caught_up - before == 2


def test_the_policys_hidden_states_give_the_same_values():
    model = make_lenvm(frozen_trunk=True)
    scorer = PolicyHeadScorer(model)
    histories = [History([3, 4, 5], [6]), History([9], [])]
    with torch.inference_mode():
        hidden = torch.stack(
            [model.model(torch.tensor([h.tail(0)])).last_hidden_state[0, -1] for h in histories]
        )
    slots = [scorer.open(history) for history in histories]
    ids = torch.tensor([[10, 11, 12], [13, 14, 15]])
    mask = torch.tensor([[True, True, True], [True, False, True]])
    z = scorer.score(slots, histories, ids, mask, hidden=hidden)
    for i, history in enumerate(histories):
        expected = recomputed(model, history.tail(0), ids[i].tolist()).masked_fill(~mask[i], 0)
        torch.testing.assert_close(z[i], expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"must be \(2, 32\), got none"):
        scorer.score(slots, histories, ids, mask)


def test_guided_by_the_policys_states_as_by_a_trunk_that_is_the_policys():
    model = make_lenvm(frozen_trunk=True)
    histories = [History([3, 4, 5], [6]), History([9], []), History([7, 8], [2])]
    with torch.inference_mode():
        hidden = torch.stack(
            [model.model(torch.tensor([h.tail(0)])).last_hidden_state[0, -1] for h in histories]
        )
    settings = GuidanceSettings(mode="tilt", beta=30.0, top_k=8)
    rows = [
        GuidedRow(i, i, settings, histories[i], len(histories[i].prompt)) for i in (2, 0)
    ]  # row 1 is not guided
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))
    results = []
    for scorer in (PolicyHeadScorer(model), QHeadScorer(model, slots=3, max_length=20)):
        out = logits.clone()
        Guide(scorer, eos_token_ids=[1], max_candidates=8).apply(out, rows, hidden=hidden)
        results.append(out)
    torch.testing.assert_close(*results, atol=1e-4, rtol=0)
    assert torch.equal(results[0][1], logits[1]) and not torch.equal(results[0][0], logits[0])


def test_models_that_cannot_do_it_are_refused(lenvm):
    with pytest.raises(ValueError, match="has a 'state' head"):
        QHeadScorer(make_lenvm(head="state"), slots=1, max_length=10)
    with pytest.raises(ValueError, match="trained with a trunk of its own"):
        PolicyHeadScorer(lenvm)


def test_the_scorer_follows_the_head():
    sizes = {"slots": 1, "max_length": 10, "max_candidates": 4}
    assert type(make_scorer(make_lenvm(head="state"), **sizes)) is ExactScorer
    frozen = make_lenvm(frozen_trunk=True)
    assert type(make_scorer(frozen, **sizes)) is QHeadScorer
    assert type(make_scorer(frozen, **sizes, policy_states=True)) is PolicyHeadScorer
    assert type(make_scorer(make_lenvm(), **sizes, policy_states=True)) is QHeadScorer
