"""Does a probe find what the policy's states hold, and has it seen nothing that it must not?"""

import pytest
import torch

from lenvm_rl.core import length_to_u, value_of_logit
from lenvm_rl.model.heads import ValueHead
from lenvm_rl.model.length_value_model import LengthValueModel
from lenvm_rl.model.probe import PER_COMPLETION, States, fit_head, fit_probe, read_states
from lenvm_rl.rollouts import Rollout, RolloutWriter
from tests.tiny import FORWARD, make_policy

GAMMA, EOS = 0.95, 1


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy")
    make_policy("llama").save_pretrained(path)
    return path


def rollout(prompt_id, sample_id, prompt_ids, response_ids):
    return Rollout(
        prompt_id=prompt_id,
        sample_id=sample_id,
        prompt_ids=prompt_ids,
        response_ids=response_ids,
        finish_reason="stop",
    )


def completions(prompts, n=3, *, seed=0, longest=30):
    """Responses whose length is told by the prompt's last token: 5, 10, ..., `longest`."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for p in range(prompts):
        length = 5 + 5 * (p % (longest // 5))
        prompt = torch.randint(20, 40, (4,), generator=generator).tolist() + [2 + length // 5]
        for i in range(n):
            words = torch.randint(20, 40, (length - 1,), generator=generator).tolist()
            rows.append(rollout(f"p{p}", i, prompt, [*words, EOS]))
    return rows


def written(path, rows):
    with RolloutWriter(path, tokenizer_sha="tiny", vocab_size=48, eos_ids=[EOS]) as writer:
        writer.append(rows)
    return path


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return written(tmp_path_factory.mktemp("probe") / "train", completions(120))


def model_of(policy):
    return LengthValueModel.from_policy(policy, gamma=GAMMA, frozen_trunk=True)


def test_a_head_recovers_a_truth_that_is_linear_in_the_states():
    torch.manual_seed(1)
    hidden = 3.0 + torch.randn(1500, 6) * torch.tensor([0.1, 1.0, 2.0, 5.0, 1.0, 1.0])
    weights = torch.tensor([6.0, -0.8, 0.3, 0.1, 0.0, 0.0])
    values = -torch.sigmoid((hidden - 3.0) @ weights)
    states = States(hidden, values, torch.zeros(1500).bool(), torch.arange(1500) % 10 == 9, 1)
    head = ValueHead(6, 64)
    epochs, loss = fit_head(head, states)
    assert epochs > 5 and loss < 4e-4 < 0.02 < values.var().item()
    with torch.no_grad():
        fresh = 3.0 + torch.randn(500, 6) * torch.tensor([0.1, 1.0, 2.0, 5.0, 1.0, 1.0])
        error = -torch.sigmoid(head(fresh)) + torch.sigmoid((fresh - 3.0) @ weights)
    assert error.square().mean().item() < 8e-4  # unseen states, not standardised


def test_lengths_that_the_prompt_tells_are_found_through_the_policy(policy, train):
    probe = fit_probe(policy, train, gamma=GAMMA)
    assert probe.model.config.frozen_trunk and probe.figures["probe_completions"] == 360
    rows = completions(60, n=1, seed=9)
    guessed, true = [], []
    for row in rows:
        with torch.no_grad():
            z = probe.model.length_logits(torch.tensor([row.prompt_ids]))[0, -1]
        guessed.append(-value_of_logit(z, target="return", gamma=GAMMA).item())
        true.append(length_to_u(torch.tensor(float(row.length)), gamma=GAMMA).item())
    error, spread = torch.tensor(guessed) - torch.tensor(true), torch.tensor(true).var()
    assert error.square().mean() < 0.1 * spread


def test_states_are_s_0_and_others_of_the_right_completion(policy, tmp_path):
    row = completions(6, n=1)[5]  # 30 tokens
    model = model_of(policy)
    found = read_states(model, written(tmp_path / "one", [row]), states=1000)
    assert len(found.targets) == PER_COMPLETION and found.completions == 1
    with torch.no_grad():
        hidden = model.model(torch.tensor([[*row.prompt_ids, *row.response_ids]])).last_hidden_state
    states = hidden[0, len(row.prompt_ids) - 1 :]
    left = (1.0 + found.targets.double()).log() / torch.tensor(GAMMA).double().log()
    offsets = [round(row.length - x) for x in left.tolist()]
    assert offsets[0] == 0 and len(set(offsets)) == PER_COMPLETION
    torch.testing.assert_close(found.hidden, states[offsets], atol=FORWARD, rtol=0)


def test_no_more_states_than_asked_for_and_the_same_ones_again(policy, train):
    model = model_of(policy)
    first, again = (read_states(model, train, states=100, seed=4) for _ in range(2))
    assert first.hidden.shape == (100, 32) and torch.equal(first.hidden, again.hidden)
    other = read_states(model, train, states=100, seed=5)
    assert not torch.equal(first.targets, other.targets)


def test_prompts_held_out_are_not_read(policy, tmp_path):
    """Held-out completions in the training file change nothing, however long they are."""
    rows, foreign = completions(20), completions(20, seed=8)
    for row in foreign:
        row.prompt_id, row.response_ids = f"x{row.prompt_id}", [21] * 60 + [EOS]
    exclude = {tuple(row.prompt_ids) for row in foreign}
    model, size = model_of(policy), {"states": 10_000, "seed": 2}
    mixed = written(tmp_path / "mixed", [*foreign, *rows])
    found = read_states(model, mixed, exclude=exclude, **size)
    assert found.completions == len(rows)
    assert found.targets.min() >= -length_to_u(torch.tensor(30.0), gamma=GAMMA)
    with pytest.raises(ValueError, match="no completion of a prompt that is not held out"):
        read_states(model, written(tmp_path / "x", foreign), exclude=exclude, **size)


def test_the_fit_and_its_judge_share_no_prompt(policy, train):
    found = read_states(model_of(policy), train, states=100_000)
    assert 0.05 < found.held.float().mean() < 0.2
    # A judge of other prompts stops a head that learns its states by heart.
    noise = States(found.hidden, -torch.rand(len(found.targets)), found.censored, found.held, 1)
    epochs, loss = fit_head(ValueHead(32, 512), noise)
    assert loss > 0.9 / 12  # of a uniform number, by the mean


def test_a_truncated_response_is_a_bound(policy, tmp_path):
    rows = completions(40, longest=10)
    for row in rows[::2]:
        row.finish_reason, row.response_ids = "length", [22] * 6
    found = read_states(model_of(policy), written(tmp_path / "cut", rows), states=10_000)
    assert 0.3 < found.censored.float().mean() < 0.7
    bounds = -torch.tensor([0.3, 0.6]).repeat_interleave(200)  # finished ones have 0.6
    none = torch.zeros(400) > 0
    whole = States(torch.ones(400, 3), bounds, bounds > -0.45, none, 1)
    head = ValueHead(3, 8)
    fit_head(head, whole)  # bounds below the finished ones pull nothing down
    assert torch.sigmoid(head(torch.ones(3))).item() == pytest.approx(0.6, abs=0.05)


def test_what_the_policy_cannot_read_is_refused(policy, tmp_path):
    rows = [rollout("long", 0, [2] * 100, [3] * 40 + [EOS])]
    with pytest.raises(ValueError, match="'long'.*exceed the LenVM's context of 128"):
        fit_probe(policy, written(tmp_path / "long", rows), gamma=GAMMA)
