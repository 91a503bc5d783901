"""Guided sampling without an engine: the same tokens when nothing is asked, bounds, log-probs."""

import pytest
import torch

import lenvm_rl.demo
from lenvm_rl.demo import task
from lenvm_rl.guidance import GuidanceSettings, PoolExhausted
from lenvm_rl.guidance.exact.scorer import ExactScorer
from lenvm_rl.model import LengthValueModel, load_tokenizer
from lenvm_rl.sampling.run import EngineFacts, Task, forced_end
from lenvm_rl.sampling.run import Request as Asked
from lenvm_rl.sampling.transformers.engine import TransformersEngine
from lenvm_rl.sampling.transformers.sampler import ContinuousSampler, Request
from tests.guidance.toy import ToyScorer, make_config
from tests.sampling.guided_rows import guided_rows
from tests.tiny import VOCAB, make_policy

EOS = 1


class NumberScorer(ToyScorer):
    """Values a token by its number: larger ones live longer."""

    def __init__(self, slots=16):
        self.config = make_config(vocab_size=VOCAB)
        self.z = torch.linspace(-4.0, 1.0, VOCAB)
        self.free, self.seen, self.scored = list(range(slots)), {}, 0


@pytest.fixture(scope="module")
def policy():
    model = make_policy("qwen2")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4.0)
    return model


def requests(n, **fields):
    return [
        Request([2 + i % 5, 7, 9 + i % 3], max_tokens=12 + 5 * (i % 4), seed=i, **fields)
        for i in range(n)
    ]


def as_drawn(row):
    """A row's part that the sampler made."""
    return {
        "token_ids": row.response_ids,
        "finish_reason": row.finish_reason,
        "logprobs": row.response_logprobs,
    }


def test_nothing_asked_for_gives_the_same_tokens(policy):
    asked = requests(12) + requests(4, temperature=0.0) + requests(4, top_p=0.9, temperature=0.7)
    plain = ContinuousSampler(policy, max_batch=4).generate(asked)
    neutral = [
        GuidanceSettings(mode="tilt", beta=0.0),
        None,
        GuidanceSettings(mode="scale", scale=1),
        GuidanceSettings(),
    ]
    for settings in (
        [neutral[0]] * 20,
        [neutral[i % 4] for i in range(20)],
    ):
        scorer = NumberScorer()
        guided = guided_rows(policy, scorer, asked, settings, max_batch=4)
        assert [as_drawn(row) for row in guided] == [vars(c) for c in plain]
        assert scorer.scored == 0


def test_unguided_requests_are_not_touched_by_guided_neighbours(policy):
    asked = requests(16)
    plain = ContinuousSampler(policy, max_batch=8).generate(asked)
    steer = GuidanceSettings(mode="tilt", beta=30.0, top_k=0)
    settings = [None if i % 2 else steer for i in range(16)]
    scorer = NumberScorer()
    guided = guided_rows(policy, scorer, asked, settings, max_batch=8, max_candidates=VOCAB)
    assert [row.response_ids for row in guided[1::2]] == [c.token_ids for c in plain[1::2]]
    assert all(a.response_ids != b.token_ids for a, b in zip(guided[::2], plain[::2], strict=True))
    assert len(scorer.free) == 16  # every slot was given back


def test_batch_size_does_not_change_guided_rows(policy):
    settings = [GuidanceSettings(mode="tilt", beta=-8.0)] * 10
    alone, together = (
        guided_rows(policy, NumberScorer(), requests(10), settings, max_batch=batch)
        for batch in (1, 7)
    )
    assert [row.response_ids for row in alone] == [row.response_ids for row in together]


def test_log_probabilities_are_those_of_the_guided_distribution(policy):
    settings = GuidanceSettings(mode="tilt", beta=6.0, top_k=0)
    request = Request([2, 7, 9], max_tokens=10, seed=3, temperature=0.8)
    completion = guided_rows(policy, NumberScorer(), [request], [settings], max_candidates=VOCAB)[0]
    tokens = [*request.prompt_ids, *completion.response_ids]
    with torch.no_grad():
        logits = policy(torch.tensor([tokens])).logits[0, len(request.prompt_ids) - 1 : -1]
    u = NumberScorer().z.sigmoid()
    u[EOS] = 0.0
    expected = ((logits / 0.8).log_softmax(-1) + 6.0 * u).log_softmax(-1)
    sampled = expected.gather(1, torch.tensor(completion.response_ids)[:, None])[:, 0]
    assert completion.response_logprobs == pytest.approx(sampled.tolist(), abs=1e-4)


def test_equal_takes_the_one_candidate_with_certainty(policy):
    settings = GuidanceSettings(mode="equal", target=6, force_eos=True)
    [completion] = guided_rows(policy, NumberScorer(), requests(1), [settings])
    assert completion.response_logprobs == [0.0] * len(completion.response_ids)


# --- the shipped policy beside an untrained LenVM --------------------------------------------


@pytest.fixture(scope="module")
def demo():
    path = str(lenvm_rl.demo.policy_path())
    tokenizer = load_tokenizer(path)
    torch.manual_seed(0)
    lenvm = LengthValueModel.from_policy(path, gamma=0.99)
    prompts = [
        tokenizer.apply_chat_template(
            task.messages(problem), add_generation_prompt=True, return_dict=False
        )
        for problem in task.sample_problems(4, seed=3)
    ]
    return path, lenvm, prompts


@pytest.mark.parametrize("mode", ["at_most", "at_least"])
def test_bounds_hold_on_the_shipped_policy(demo, mode):
    """Whatever the values are worth, the counts of tokens are kept."""
    path, lenvm, prompts = demo
    targets = [3, 20, 45, 70]
    asked = [Request(p, max_tokens=160, seed=i) for i, p in enumerate(prompts)]
    settings = [GuidanceSettings(mode=mode, target=n) for n in targets]
    scorer = ExactScorer(lenvm, slots=4, max_length=400, max_candidates=20)
    completions = guided_rows(path, scorer, asked, settings, max_batch=4)
    for completion, n in zip(completions, targets, strict=True):
        ended = completion.finish_reason == "stop"
        length = completion.length - ended
        if mode == "at_most":
            assert length <= n and (ended or (length == n and forced_end(completion)))
        else:
            assert length >= n
    assert scorer.in_use == 0


# --- bad input -------------------------------------------------------------------------------


def test_bad_input(policy):
    equal = GuidanceSettings(mode="equal", target=5)
    engine = TransformersEngine(ContinuousSampler(policy), EngineFacts(policy="", tokenizer_sha=""))
    task = Task(prompt_id="p", prompt_ids=[5], n=1, max_tokens=9, guidance=equal)
    with pytest.raises(ValueError, match=r"nothing to guide by: name .* \(--lenvm\)"):
        list(engine(iter([Asked(task=task, sample_id=0, sampling={}, guidance=equal)]), 0))
    with pytest.raises(ValueError, match="lenvm_gamma is 0.5, but the LenVM was trained with"):
        other = GuidanceSettings(mode="equal", target=5, gamma=0.5)
        guided_rows(policy, NumberScorer(), requests(1), [other])
    scorer = NumberScorer()
    scorer.config = make_config(vocab_size=20)
    with pytest.raises(ValueError, match="48 tokens, but the LenVM knows only 20"):
        guided_rows(policy, scorer, requests(1), [equal])


def test_a_pool_smaller_than_the_batch_is_refused_and_left_empty(policy):
    scorer = NumberScorer(slots=2)
    tilt = GuidanceSettings(mode="tilt", beta=-3.0)
    with pytest.raises(PoolExhausted):
        guided_rows(policy, scorer, requests(3), [tilt] * 3, max_batch=3)
    assert len(scorer.free) == 2
    guided_rows(policy, scorer, requests(3), [tilt] * 3, max_batch=2)
