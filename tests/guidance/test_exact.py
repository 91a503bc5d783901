"""Does every candidate get the value that a full recompute gives it, whatever the engine does?"""

import random
from dataclasses import asdict

import pytest
import torch

from lenvm_rl.guidance import CandidateScorer, History, PoolExhausted
from lenvm_rl.guidance.exact.scorer import ExactScorer
from lenvm_rl.model import LengthValueConfig, LengthValueModel
from tests.tiny import FORWARD, VOCAB, make_policy

TRUNKS = {
    "llama": {},
    "llama_one_head_each": {"num_key_value_heads": 2},
    "qwen2": {},
    "qwen2_partly_windowed": {
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 1,
    },
    "qwen3": {},
    "mistral": {"sliding_window": None},
    "mistral_windowed": {"sliding_window": 9},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "decoder_sparse_step": 1,
    },
}
K = 6


def make_lenvm(trunk="llama", **fields) -> LengthValueModel:
    """Weights so large that values differ by far more than the tolerance."""
    family = trunk.split("_windowed")[0].split("_partly")[0].split("_one")[0]
    shape = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    config = make_policy(family, **shape | TRUNKS[trunk] | fields).config
    torch.manual_seed(1)
    model = LengthValueModel(LengthValueConfig(text_config=config, gamma=0.97)).eval()
    with torch.no_grad():
        for parameter in model.score.parameters():
            parameter.mul_(3)
    return model


@pytest.fixture(scope="module")
def lenvm():
    return make_lenvm()


def make_scorer(model, **settings) -> ExactScorer:
    return ExactScorer(model, **{"slots": 4, "max_length": 100, "max_candidates": K} | settings)


@torch.inference_mode()
def recomputed(model, history, candidates) -> torch.Tensor:
    """The oracle: one full forward per candidate."""
    rows = [history.tail(0) + [x] for x in candidates.tolist()]
    return model.length_logits(torch.tensor(rows))[:, -1]


def draw(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, VOCAB, generator=generator).argsort(1)[:, :K]


def prompt(length, seed=0):
    return random.Random(seed).choices(range(VOCAB), k=length)


def everything(candidates):
    return torch.ones_like(candidates, dtype=torch.bool)


class Engine:
    """A serving engine at random: admits, samples, skips, preempts, finishes, and checks."""

    def __init__(self, model, scorer, seed):
        self.model, self.scorer = model, scorer
        self.rng = random.Random(seed)
        self.running: list[tuple[int, History]] = []
        self.known: list[list[int]] = [[]]
        self.values: list[float] = []
        self.worst = 0.0

    def admit(self):
        """One prompt, one to three samples of it, perhaps behind a shared beginning."""
        shared = self.rng.choice(self.known)
        ids = shared + self.rng.choices(range(VOCAB), k=self.rng.randint(1, 30))
        ids = ids[:60]
        self.known.append(ids[: self.rng.randint(1, len(ids))])
        for _ in range(self.rng.randint(1, 3)):
            history = History(ids, [])
            if self.scorer.in_use == 4:
                with pytest.raises(PoolExhausted, match="4 slots"):
                    self.scorer.open(history)
            else:
                self.running.append((self.scorer.open(history), history))

    def preempt(self):
        slot, history = self.running.pop(self.rng.randrange(len(self.running)))
        self.scorer.close(slot)
        if self.rng.random() < 0.5 and self.scorer.in_use < 3:
            self.admit()
        if self.scorer.in_use < 4:
            self.running.append((self.scorer.open(history), history))

    def finish(self):
        slot, _ = self.running.pop(self.rng.randrange(len(self.running)))
        self.scorer.close(slot)

    def step(self):
        rows = self.rng.sample(self.running, self.rng.randint(1, len(self.running)))
        candidates = draw(len(rows), self.rng.getrandbits(30))
        mask = torch.tensor([[self.rng.random() < 0.7 for _ in range(K)] for _ in rows])
        slots, histories = zip(*rows, strict=True)
        logits = self.scorer.score(slots, histories, candidates, mask)
        assert logits.dtype == torch.float32 and not logits[~mask].any()
        for i, history in enumerate(histories):
            expected = recomputed(self.model, history, candidates[i])
            error = torch.where(mask[i], expected - logits[i], 0).abs().max().item()
            self.worst = max(self.worst, error)
            self.values += expected.tolist()
            kind = self.rng.random()  # a candidate, any token, several, or the same state again
            count = 1 if kind < 0.7 else self.rng.randint(0, 25)
            for n in range(count):
                choices = candidates[i].tolist() if n == 0 and kind < 0.6 else range(VOCAB)
                history.output.append(self.rng.choice(choices))
        for slot, history in [row for row in self.running if len(row[1]) > 70]:
            self.running.remove((slot, history))
            self.scorer.close(slot)

    def run(self, actions):
        for _ in range(actions):
            act = self.rng.choices(
                [self.admit, self.step, self.preempt, self.finish], [2, 6, 1, 0.5]
            )[0]
            (act if self.running else self.admit)()


def worth_comparing(engine):
    """Whether the run valued enough candidates, and different ones."""
    return len(engine.values) > 200 and torch.tensor(engine.values).std().item() > 0.1


@pytest.mark.parametrize("trunk", TRUNKS)
def test_values_equal_a_full_recompute(trunk):
    model = make_lenvm(trunk)
    engine = Engine(model, make_scorer(model), seed=trunk)
    engine.run(60)
    assert worth_comparing(engine) and engine.worst < FORWARD


@pytest.mark.parametrize("seed", range(8))
def test_values_stay_exact_whatever_happens(lenvm, seed):
    scorer = make_scorer(lenvm, chunk_tokens=(3, 17, 64, 2048)[seed % 4])
    scorer._drops_masked = seed < 4  # both paths, whatever the device
    engine = Engine(lenvm, scorer, seed)
    engine.run(120)
    assert worth_comparing(engine) and engine.worst < FORWARD
    stats = scorer.stats
    assert min(stats.committed, stats.caught_up, stats.prefilled, stats.reused, stats.copied) > 0


def test_it_is_a_candidate_scorer(lenvm):
    scorer = make_scorer(lenvm)
    assert isinstance(scorer, CandidateScorer)
    assert scorer.config is lenvm.config


def test_nothing_is_computed_twice(lenvm):
    scorer = make_scorer(lenvm)
    histories = [History(prompt(n, n), []) for n in (1, 20, 41)]
    slots = [scorer.open(history) for history in histories]
    for step in range(12):
        candidates = draw(3, step)
        scorer.score(slots, histories, candidates, everything(candidates))
        for row, history in enumerate(histories):
            history.output.append(int(candidates[row, (row + step) % K]))
    found = asdict(scorer.stats)
    assert found == {
        "steps": 12,
        "rows": 36,
        "candidates": 12 * 3 * K,
        "committed": 11 * 3,
        "caught_up": 1,  # the prompt of one token
        "prefilled": 20 + 41,
        "reused": 0,
        "copied": 0,
        "passes": 12 + 1,
        "evicted": 0,
    }


def test_a_token_that_was_no_candidate_is_caught_up_beside_the_others(lenvm):
    scorer, history = make_scorer(lenvm), History(prompt(5), [])
    slot = scorer.open(history)
    candidates = draw(1, 0)
    mask = everything(candidates)
    mask[0, 2] = False
    scorer.score([slot], [history], candidates, mask)
    history.output.append(int(candidates[0, 2]))  # sampled though not valued
    found = scorer.score([slot], [history], candidates, mask)
    assert scorer.stats.committed == 0
    assert scorer.stats.caught_up == 6 and scorer.stats.passes == 2
    expected = recomputed(lenvm, history, candidates[0])
    torch.testing.assert_close(found[mask], expected[mask[0]], atol=FORWARD, rtol=0)


def test_rows_do_not_depend_on_their_company(lenvm):
    together = make_scorer(lenvm)
    alone = [make_scorer(lenvm) for _ in range(3)]
    histories = [History(prompt(n, n), []) for n in (3, 50, 21)]
    slots = [together.open(history) for history in histories]
    own = [scorer.open(history) for scorer, history in zip(alone, histories, strict=True)]
    for step in range(4):
        candidates = draw(3, step)
        mask = everything(candidates)
        batch = together.score(slots, histories, candidates, mask)
        for i, history in enumerate(histories):
            single = alone[i].score([own[i]], [history], candidates[i : i + 1], mask[i : i + 1])
            torch.testing.assert_close(batch[i : i + 1], single, atol=FORWARD, rtol=0)
            history.output.append(int(candidates[i, step]))


@pytest.mark.parametrize("drops_masked", [True, False])
def test_masked_candidates_do_not_matter(lenvm, drops_masked):
    results = []
    for filler in (0, 17):
        scorer, history = make_scorer(lenvm), History(prompt(9), [])
        scorer._drops_masked = drops_masked
        slot = scorer.open(history)
        candidates = draw(1, 3)
        mask = torch.tensor([[True, False, True, True, False, False]])
        candidates = candidates.masked_fill(~mask, filler)
        results.append(scorer.score([slot], [history], candidates, mask))
    assert torch.equal(*results)


def test_a_row_without_candidates_costs_nothing_and_is_caught_up_later(lenvm):
    scorer, history = make_scorer(lenvm), History(prompt(4), [])
    slot = scorer.open(history)
    candidates = draw(1, 0)
    assert not scorer.score([slot], [history], candidates, everything(candidates) & False).any()
    history.output.extend(prompt(3, 8))
    found = scorer.score([slot], [history], candidates, everything(candidates))
    torch.testing.assert_close(
        found[0], recomputed(lenvm, history, candidates[0]), atol=FORWARD, rtol=0
    )


def test_a_preempted_row_finds_all_of_its_tokens_again(lenvm):
    scorer = make_scorer(lenvm, slots=2)
    history, other = History(prompt(40), []), History(prompt(40, 1), [])
    slot = scorer.open(history)
    candidates = draw(1, 0)
    scorer.score([slot], [history], candidates, everything(candidates))
    history.output.append(int(candidates[0, 3]))
    scorer.close(slot)
    scorer.open(other)  # takes the slot without content
    before = scorer.stats.prefilled
    assert scorer.open(history) == slot
    scorer.score([slot], [history], candidates, everything(candidates))
    assert scorer.stats.prefilled == before
    assert scorer.stats.reused == 40
    assert scorer.stats.committed == 1  # even the candidate sampled before the preemption


def test_samples_of_one_prompt_compute_it_once(lenvm):
    scorer = make_scorer(lenvm, slots=6)
    ids = prompt(60)
    histories = [History(ids, []) for _ in range(4)] + [History(ids[:30] + prompt(20, 5), [])]
    slots = [scorer.open(history) for history in histories]
    candidates = draw(5, 0)
    found = scorer.score(slots, histories, candidates, everything(candidates))
    assert scorer.stats.prefilled == 60 + 20
    assert scorer.stats.copied == 3 * 60 + 30
    for i, history in enumerate(histories):
        expected = recomputed(lenvm, history, candidates[i])
        torch.testing.assert_close(found[i], expected, atol=FORWARD, rtol=0)


def test_prompts_are_read_in_bounded_passes(lenvm):
    scorer = make_scorer(lenvm, chunk_tokens=16)
    widths = []
    run = scorer._run_trunk
    scorer._run_trunk = lambda ids, *rest: (widths.append(len(ids)), run(ids, *rest))[1]
    histories = [History(prompt(n, n), []) for n in (37, 26)]
    slots = [scorer.open(history) for history in histories]
    candidates = draw(2, 0)
    scorer.score(slots, histories, candidates, everything(candidates))
    assert widths == [16, 16, 16, 15, 2 * K]


def test_the_model_stays_as_it_was(lenvm):
    ids = torch.tensor([prompt(12)])
    config = lenvm.model.config
    before, settings = lenvm.length_logits(ids), config.to_dict()
    scorer, history = make_scorer(lenvm), History(prompt(5), [])
    candidates = draw(1, 0)
    scorer.score([scorer.open(history)], [history], candidates, everything(candidates))
    assert config.to_dict() == settings and config._attn_implementation == "sdpa"
    assert torch.equal(lenvm.length_logits(ids), before)


def test_bfloat16_is_as_close_as_bfloat16_gets():
    model = make_lenvm(initializer_range=0.1).to(torch.bfloat16)
    scorer, history = make_scorer(model), History(prompt(30), [])
    slot = scorer.open(history)
    for step in range(3):
        candidates = draw(1, step)
        found = scorer.score([slot], [history], candidates, everything(candidates))
        expected = recomputed(model, history, candidates[0])
        torch.testing.assert_close(found[0], expected, atol=0.05, rtol=0.05)
        history.output.append(int(candidates[0, 0]))
    assert scorer.stats.committed == 2


# --- what it refuses ---------------------------------------------------------------------------


def call(scorer, slot, history, candidates=None, mask=None):
    candidates = draw(1, 0) if candidates is None else candidates
    return scorer.score(
        [slot], [history], candidates, everything(candidates) if mask is None else mask
    )


def test_a_full_pool_says_so_and_a_closed_slot_helps(lenvm):
    scorer = make_scorer(lenvm, slots=1)
    slot = scorer.open(History([3], []))
    with pytest.raises(PoolExhausted, match="all 1 slots .* more slots"):
        scorer.open(History([4], []))
    scorer.close(slot)
    assert scorer.open(History([4], [])) == slot


def test_histories_longer_than_the_slots_are_refused_before_any_work(lenvm):
    scorer = make_scorer(lenvm, max_length=20)
    with pytest.raises(ValueError, match="20 tokens .* max_length 20"):
        scorer.open(History(prompt(20), []))
    history = History(prompt(19), [])
    slot = scorer.open(history)
    assert call(scorer, slot, history).all()
    history.output.append(1)
    with pytest.raises(ValueError, match="max_length 20"):
        call(scorer, slot, history)
    assert scorer.stats.steps == 1


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_tokens_outside_the_vocabulary_are_refused(lenvm, token):
    scorer, history = make_scorer(lenvm), History([1, 2], [])
    slot = scorer.open(history)
    candidates = draw(1, 0)
    candidates[0, 1] = token
    with pytest.raises(ValueError, match=f"{token} is outside .* vocabulary of {VOCAB}"):
        call(scorer, slot, history, candidates)
    history.output.append(token)
    with pytest.raises(ValueError, match=f"{token} is outside"):
        call(scorer, slot, history)
    assert scorer.stats.passes == 0


def test_calls_that_do_not_fit_are_refused(lenvm):
    scorer, history = make_scorer(lenvm), History([1, 2], [5])
    slot = scorer.open(history)
    with pytest.raises(ValueError, match="slot 2 is not open"):
        call(scorer, 2, history)
    with pytest.raises(ValueError, match="slot 9 is not open"):
        scorer.close(9)
    with pytest.raises(ValueError, match="7 candidates per row, but .* for 6"):
        call(scorer, slot, history, torch.zeros(1, 7, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(1, 6\) and \(1, 5\)"):
        call(scorer, slot, history, mask=torch.ones(1, 5, dtype=torch.bool))
    candidates = draw(2, 0)
    with pytest.raises(ValueError, match="1 different"):
        scorer.score([slot, slot], [history, history], candidates, everything(candidates))
    call(scorer, slot, history)
    history.output.pop()
    with pytest.raises(ValueError, match="fewer than the 3 seen"):
        call(scorer, slot, history)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slots": 0}, "slots must be at least 1, got 0"),
        ({"max_length": 0}, "max_length must be at least 1"),
        ({"max_candidates": 0}, "max_candidates must be at least 1"),
        ({"chunk_tokens": 0}, "chunk_tokens must be at least 1"),
        ({"max_length": 129}, "129 is longer than the LenVM's context of 128"),
    ],
)
def test_settings_out_of_range_are_refused(lenvm, settings, message):
    with pytest.raises(ValueError, match=message):
        make_scorer(lenvm, **settings)


def test_a_candidate_head_is_refused(lenvm):
    config = LengthValueConfig(text_config=lenvm.config.text_config, gamma=0.97, head="candidate")
    with pytest.raises(ValueError, match="'candidate' head, .* QHeadScorer"):
        make_scorer(LengthValueModel(config))


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("gemma2", {}, "soft-capping"),
        ("qwen2", {"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ("bloom", {"n_layer": 2, "n_head": 2}, "0 of the 2 layers"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
            | {"original_max_position_embeddings": 64}},
            "beyond 64 tokens",
        ),
    ],
)  # fmt: skip
def test_trunks_that_cannot_be_kept_token_by_token_are_refused(family, fields, message):
    config = make_policy(family, **fields).config
    model = LengthValueModel(LengthValueConfig(text_config=config, gamma=0.97))
    with pytest.raises(ValueError, match=message):
        make_scorer(model)
