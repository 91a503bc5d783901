"""Does a candidate head learn what the exact scorer says, and nothing else change?"""

import copy
import random

import pytest
import torch

from lenvm_rl.guidance.heads.distill import Distiller, DistillSettings, check_pair, fresh_head
from lenvm_rl.model import LengthValueConfig, LengthValueModel
from tests.guidance.test_exact import make_lenvm
from tests.tiny import VOCAB, make_policy

EOS = 1


def make_head(exact: LengthValueModel, **fields) -> LengthValueModel:
    """A random candidate head on the same trunk."""
    torch.manual_seed(2)
    config = {"text_config": exact.config.text_config, "gamma": exact.config.gamma}
    model = LengthValueModel(LengthValueConfig(**{**config, "head": "candidate", **fields}))
    model.model.load_state_dict(exact.model.state_dict())
    return model.eval()


def make_completions(count, seed=0):
    rng = random.Random(seed)
    return [
        (rng.choices(range(2, VOCAB), k=rng.randint(1, 9)),
         [*rng.choices(range(2, VOCAB), k=rng.randint(0, 30)), EOS])
        for _ in range(count)
    ]  # fmt: skip


def make_distiller(exact=None, head=None, **settings):
    exact = exact or make_lenvm()
    head = head or make_head(exact)
    given = {"top_k": 5, "states": 4, "batch_size": 4, "max_length": 60, "min_p": 0.0}
    return Distiller(
        exact,
        head,
        make_policy("llama", initializer_range=0.2),
        eos_token_ids=[EOS],
        settings=DistillSettings(**{**given, **settings}),
        seed=0,
    )


def test_targets_are_those_of_a_full_recompute_of_the_policys_candidates():
    distiller = make_distiller(top_k=6)
    completions = make_completions(4)
    tokens = [[*prompt, *response] for prompt, response in completions]
    drawn = copy.deepcopy(distiller._teacher._random)
    batch = distiller.ask(completions)
    distiller._teacher._random = drawn
    _, places = distiller._teacher._draw(completions)
    states = [tokens[i][: t + 1] for i, ts in enumerate(places) for t in ts]
    assert len(states) == len(batch.mask) > 8
    exact = distiller._teacher._scorer.model
    with torch.no_grad():
        for i, state in enumerate(states):
            top = distiller._teacher._policy(torch.tensor([state])).logits[0, -1].topk(6).indices
            assert batch.candidates[i].tolist() == top.tolist()
            assert batch.mask[i].tolist() == [x != EOS for x in top.tolist()]
            rows = torch.tensor([[*state, x] for x in top.tolist()])
            z = exact.length_logits(rows)[:, -1].masked_fill(top == EOS, 0.0)
            torch.testing.assert_close(batch.exact[i], z, atol=1e-5, rtol=1e-5)
            hidden = distiller._head.model(torch.tensor([state])).last_hidden_state[0, -1]
            torch.testing.assert_close(batch.hidden[i], hidden, atol=1e-5, rtol=1e-5)


def test_states_are_those_before_a_token_of_the_response():
    distiller = make_distiller(states=50, batch_size=1)
    _, [places] = distiller._teacher._draw([([5, 6, 7], [8, 9, EOS])])
    assert places == [2, 3, 4]  # s_0 after the prompt, s_2 before EOS
    truncated = make_distiller(states=50, batch_size=1, max_length=4)
    assert truncated._teacher._draw([([5, 6, 7], [8, 9, EOS])]) == ([[5, 6, 7, 8]], [[2, 3]])


def test_the_loss_is_the_mean_over_candidates_that_count():
    distiller = make_distiller()
    batch = distiller.ask(make_completions(4))
    batch.mask[0] = False
    z = distiller._outputs(batch)
    u, exact = torch.sigmoid(z), torch.sigmoid(batch.exact)
    total, count = 0.0, 0
    for i, row in enumerate(batch.mask.tolist()):
        for k, counts in enumerate(row):
            if counts:
                total += float(((u[i, k] - exact[i, k]) ** 2).detach())
                count += 1
    assert distiller.loss(batch).item() == pytest.approx(total / count, rel=1e-5)
    batch.exact[0] = torch.nan  # where nothing counts
    assert distiller.loss(batch).item() == pytest.approx(total / count, rel=1e-5)


def test_a_distilled_head_approaches_the_exact_values_and_nothing_else_moves():
    exact = make_lenvm(initializer_range=0.02)  # smooth enough for a small head
    head = make_head(exact, head_hidden_size=128)
    distiller = make_distiller(exact, head, batch_size=8, states=8, learning_rate=3e-2)
    before = {name: x.clone() for name, x in head.state_dict().items()}
    teacher = {name: x.clone() for name, x in distiller._teacher._scorer.model.state_dict().items()}
    train, held_out = make_completions(64), make_completions(8, seed=1)
    measured = [distiller.ask(held_out)]
    untrained = distiller.compare(measured)
    batches = (train[i % 64 : i % 64 + 8] for i in range(0, 8 * 150, 8))
    losses = distiller.train(batches, steps=150)
    trained = distiller.compare(measured)
    assert len(losses) == 150 and sum(losses[-10:]) < 0.3 * sum(losses[:10])
    assert trained["rmse"] < 0.6 * untrained["rmse"]
    assert trained["tokens"] < 0.6 * untrained["tokens"]
    assert untrained["same_shortest"] < 0.3 and trained["same_shortest"] > 0.5
    changed = {name for name, x in head.state_dict().items() if not torch.equal(x, before[name])}
    assert changed and all(name.startswith("score.") for name in changed)
    assert all(p.grad is None for name, p in head.named_parameters() if name[:6] == "model.")
    for name, x in distiller._teacher._scorer.model.state_dict().items():
        assert torch.equal(x, teacher[name])
    assert distiller._teacher._scorer.in_use == 0


def test_an_exact_head_has_no_error():
    """Compared with itself, nothing is off."""
    distiller = make_distiller()
    batch = distiller.ask(make_completions(4))
    batch.exact.copy_(distiller._outputs(batch).detach())
    found = distiller.compare([batch])
    assert found == {"rmse": 0.0, "tokens": 0.0, "same_shortest": 1.0}


def test_a_fresh_head_stands_on_the_teachers_trunk():
    exact = make_lenvm()
    head = fresh_head(exact)
    check_pair(exact.config, head.config)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        ours, theirs = (x.model(ids).last_hidden_state for x in (head, exact))
    assert torch.equal(ours, theirs) and exact.config.head == "state"
    with pytest.raises(ValueError, match="'candidate' head, but needs a 'state'"):
        fresh_head(head)


# --- what it refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 0.5}, "gamma 0.97, the head 0.5"),
        ({"target": "log_length"}, "target return, the head log_length"),
        ({"head": "state"}, "--head has a 'state' head, but a 'candidate'"),
    ],
)
def test_pairs_whose_logits_do_not_mean_the_same_are_refused(changes, message):
    exact = make_lenvm().config
    fields = {"text_config": exact.text_config, "gamma": exact.gamma, "head": "candidate"}
    with pytest.raises(ValueError, match=message):
        check_pair(exact, LengthValueConfig(**{**fields, **changes}))


def test_a_teacher_with_a_candidate_head_or_of_another_tokenizer_is_refused():
    exact = make_lenvm()
    head = make_head(exact)
    with pytest.raises(ValueError, match="--lenvm has a 'candidate' head"):
        check_pair(head.config, head.config)
    exact.config.policy, head.config.policy = {"tokenizer_sha": "a"}, {"tokenizer_sha": "b"}
    with pytest.raises(ValueError, match="different tokenizers"):
        check_pair(exact.config, head.config)


@pytest.mark.parametrize(
    ("completions", "message"),
    [
        ([], "no completions"),
        ([([], [3])], "needs tokens in its prompt"),
        ([([3], [])], "needs tokens in its prompt and in its response"),
        ([([3], [VOCAB])], f"token id {VOCAB} is outside"),
        ([([3] * 61, [4])], "more than max_length 60"),
        ([([3], [4])] * 5, "5 completions in a step"),
    ],
)
def test_completions_that_cannot_be_are_refused(completions, message):
    with pytest.raises(ValueError, match=message):
        make_distiller().ask(completions)


def test_a_damaged_teacher_and_too_few_completions_are_refused():
    exact = make_lenvm()
    head = make_head(exact)
    with torch.no_grad():
        exact.score.summary.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="no numbers: is it damaged"):
        make_distiller(exact, head).ask(make_completions(2))
    with pytest.raises(ValueError, match="ended after 1 of 3 steps"):
        make_distiller().train([make_completions(2)], steps=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"min_p": 1.5}, r"min_p must be in \[0, 1\], got 1.5"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, got nan"),
        ({"states": -1}, "states must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DistillSettings(**settings)
