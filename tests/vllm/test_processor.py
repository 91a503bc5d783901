"""Rows, requests and candidates of both runners, against mocked runner state; no engine starts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lenvm_rl.guidance import PoolExhausted
from lenvm_rl.model import LengthValueModel
from tests.vllm.conftest import VOCAB

EQUAL = {"lenvm_mode": "equal", "lenvm_target": 12}
TILT = {"lenvm_mode": "tilt", "lenvm_beta": -8.0, "lenvm_top_k": 10, "lenvm_min_p": 0}
PROMPTS = [[5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15, 16], [20, 21]]


@pytest.fixture
def make(vllm, engine_config, lenvm):
    """A processor of the V1 runner, or with `states` of the V2 runner."""
    from lenvm_rl.vllm import LengthGuidance

    def build(states=None, **changes):
        config = engine_config(lenvm, **changes)
        return LengthGuidance(config, torch.device("cpu") if states is None else states)

    return build


@pytest.fixture
def params(vllm):
    def build(args, **settings):
        asked = vllm.SamplingParams(extra_args=args, **settings)
        asked.update_from_generation_config({}, 1)  # as at admission
        return asked

    return build


def update(vllm, *, removed=(), added=(), moved=(), size=4):
    from vllm.v1.sample.logits_processor.interface import BatchUpdate

    return BatchUpdate(size, list(removed), list(added), list(moved))


def logits_of(rows, seed=0):
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def in_use(processor):
    return processor._guide.scorer.in_use


def test_unguided_rows_keep_their_bits(vllm, make, params):
    processor, outputs = make(), [[], [], [], []]
    asked = [None, EQUAL, {"lenvm_mode": "off"}, {"lenvm_mode": "tilt", "lenvm_beta": 0.0}]
    added = [(i, params(args), PROMPTS[i], outputs[i]) for i, args in enumerate(asked)]
    processor.update_state(update(vllm, added=added))
    before = logits_of(4)
    after = processor.apply(before.clone())
    assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])
    assert after[1].isfinite().sum() == 1, "equal leaves the one best candidate"


def test_the_written_distribution_is_the_tilt_of_recomputed_values(vllm, make, params, lenvm):
    processor, temperature = make(), 0.7
    asked = params(TILT, temperature=temperature)
    processor.update_state(update(vllm, added=[(0, asked, PROMPTS[0], [30, 31])]))
    raw = logits_of(1)
    written = processor.apply(raw.clone())[0] / temperature
    top = (raw[0] / temperature).topk(10)
    history = torch.tensor(PROMPTS[0] + [30, 31])
    with torch.inference_mode():
        whole = torch.cat([history.expand(10, -1), top.indices[:, None]], dim=1)
        z = LengthValueModel.from_pretrained(lenvm).length_logits(whole)[:, -1]
    u = torch.sigmoid(z).masked_fill(top.indices == 1, 0.0)  # nothing is left after EOS
    expected = torch.log_softmax(top.values + TILT["lenvm_beta"] * u, -1)
    torch.testing.assert_close(written.log_softmax(-1)[top.indices], expected, rtol=0, atol=2e-5)
    assert written.isfinite().sum() == 10


def test_requests_keep_their_guidance_when_rows_move(vllm, make, params):
    from vllm.v1.sample.logits_processor.interface import MoveDirectionality as Way

    asked = [params(None), params(EQUAL), params(TILT)]
    still, moved = make(), make()
    added = [(i, asked[i], PROMPTS[i], [30 + i]) for i in range(3)]
    still.update_state(update(vllm, added=added))
    moved.update_state(update(vllm, added=added))
    moved.update_state(update(vllm, moved=[(0, 2, Way.SWAP)]))  # rows: TILT, EQUAL, none
    moved.update_state(update(vllm, moved=[(1, 3, Way.UNIDIRECTIONAL)]))  # EQUAL into row 3
    raw = logits_of(4)
    one = still.apply(raw[[0, 1, 2]].clone())
    other = moved.apply(raw[[2, 3, 0, 1]].clone())
    assert torch.equal(other[2], raw[0]) and torch.equal(other[1], raw[3])
    torch.testing.assert_close(other[0], one[2], rtol=0, atol=1e-5)
    torch.testing.assert_close(other[3], one[1], rtol=0, atol=1e-5)


def test_slots_come_back_when_requests_leave_or_are_replaced(vllm, make, params):
    from vllm.v1.sample.logits_processor.interface import MoveDirectionality as Way

    processor = make()
    for turn in range(5):  # twenty requests through four slots, in every way a row can end
        added = [(i, params(TILT), [25 + turn, *PROMPTS[i]], []) for i in range(4)]
        processor.update_state(update(vllm, added=added))  # replaces what is there
        processor.apply(logits_of(4, seed=turn))
        assert in_use(processor) == 4
    processor.update_state(update(vllm, removed=[3]))
    processor.update_state(update(vllm, moved=[(1, 0, Way.UNIDIRECTIONAL)]))
    assert in_use(processor) == 2
    processor.update_state(update(vllm, removed=[0, 2]))
    assert in_use(processor) == 0
    raw = logits_of(4)
    assert torch.equal(processor.apply(raw.clone()), raw)


def test_a_preempted_request_goes_on_with_what_its_slot_holds(vllm, make, params):
    processor, output = make(), [30, 31, 32]
    added = [(0, params(TILT), PROMPTS[0], output)]
    processor.update_state(update(vllm, added=added))
    before = processor.apply(logits_of(1))
    processor.update_state(update(vllm, removed=[0]))
    processor.update_state(update(vllm, added=[(2, params(TILT), PROMPTS[0], list(output))]))
    raw = logits_of(3)
    raw[2] = logits_of(1)[0]
    after = processor.apply(raw)
    torch.testing.assert_close(after[2], before[0], rtol=0, atol=1e-5)
    assert processor._guide.scorer.stats.reused >= len(PROMPTS[0]) + len(output)


def test_a_row_that_is_thrown_away_does_not_disturb_the_next_step(vllm, make, params):
    processor = make()
    processor.update_state(update(vllm, added=[(0, params(TILT), PROMPTS[0], [])]))
    processor.apply(logits_of(1, seed=1))  # a part of the prompt: nothing was appended
    again = processor.apply(logits_of(1, seed=2))
    fresh = make()
    fresh.update_state(update(vllm, added=[(0, params(TILT), PROMPTS[0], [])]))
    once = fresh.apply(logits_of(1, seed=2))
    torch.testing.assert_close(again, once, rtol=0, atol=1e-5)


def test_masked_tokens_are_never_candidates(vllm, make, params):
    processor = make()
    processor.update_state(
        update(vllm, added=[(i, params(a), PROMPTS[i], []) for i, a in enumerate([EQUAL, TILT])])
    )
    raw = logits_of(2)
    allowed = torch.tensor([[17, 18, 30], [30, 31, 32]])
    masked = torch.full_like(raw, -torch.inf).scatter(1, allowed, raw.gather(1, allowed))
    written = processor.apply(masked)
    for row in range(2):
        chosen = written[row].isfinite().nonzero()[:, 0].tolist()
        assert chosen and set(chosen) <= set(allowed[row].tolist())


def test_padding_of_the_output_layer_is_never_sampled(vllm, make, params):
    processor = make(vocab_size=VOCAB + 20)
    strange = [5, VOCAB + 15, 6]  # an id that stands for no token must not stop the engine
    processor.update_state(update(vllm, added=[(1, params(TILT), strange, [])]))
    raw = torch.cat([logits_of(2), torch.full((2, 20), 50.0)], dim=1)
    written = processor.apply(raw.clone())
    assert torch.equal(written[0], raw[0])
    assert not written[1, VOCAB:].isfinite().any() and written[1].isfinite().sum() == 10


def test_placeholder_tokens_leave_a_row_unguided_and_are_reported(vllm, make, params, caplog):
    processor = make()
    processor.update_state(update(vllm, added=[(0, params(EQUAL), PROMPTS[0], [-1])]))
    raw = logits_of(1)
    with caplog.at_level("ERROR", logger="vllm.lenvm_rl"):
        assert torch.equal(processor.apply(raw.clone()), raw)
        processor.apply(raw.clone())
    hidden = [r for r in caplog.records if "hides sampled tokens" in r.message]
    assert len(hidden) == 1


def test_the_pool_holds_all_that_run_at_once(vllm, make, params):
    processor = make(max_num_seqs=4)
    processor.update_state(
        update(vllm, added=[(i, params(TILT), PROMPTS[i], []) for i in range(4)])
    )
    processor.apply(logits_of(4))
    with pytest.raises(PoolExhausted):  # a fifth would not fit: vLLM never runs it
        processor._guide.scorer.open(processor._requests[0].history)


class States:
    """Request state of the V2 runner, as far as the processor reads it."""

    def __init__(self, slots=8, columns=64):
        self.device = torch.device("cpu")
        self.all_token_ids = SimpleNamespace(gpu=torch.zeros(slots, columns, dtype=torch.int32))
        self.prompt_len = SimpleNamespace(np=torch.zeros(slots, dtype=torch.int32).numpy())
        self.prefill_len = SimpleNamespace(np=torch.zeros(slots, dtype=torch.int32).numpy())

    def put(self, slot, prompt, output=()):
        tokens = [*prompt, *output]
        self.all_token_ids.gpu[slot, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        self.prompt_len.np[slot] = len(prompt)
        self.prefill_len.np[slot] = len(tokens)


def context(slots, lengths):
    """What a step of the V2 runner says on the host; nothing else may be asked."""
    return SimpleNamespace(
        idx_mapping_np=np.array(slots), seq_lens_upper_bound_np=np.array(lengths)
    )


def test_both_runners_write_the_same(vllm, make, params):
    states, slots, asked = States(), [6, 2, 4], [params(TILT), params(None), params(EQUAL)]
    v1, v2 = make(), make(states)
    outputs = [[], [], []]
    v1.update_state(update(vllm, added=[(i, asked[i], PROMPTS[i], outputs[i]) for i in range(3)]))
    for i, slot in enumerate(slots):
        states.put(slot, PROMPTS[i])
        assert v2.add_request(slot, asked[i]) == (i != 1)
    v2.apply_staged_writes()
    for step in range(9):
        raw = logits_of(3, seed=step)
        one = v1.apply(raw.clone())
        order = [(step + k) % 3 for k in range(3)]  # a row is not a request
        lengths = [len(PROMPTS[i]) + len(outputs[i]) for i in order]
        other = v2.apply(raw[order].clone(), context([slots[i] for i in order], lengths))
        for row, i in enumerate(order):
            torch.testing.assert_close(other[row], one[i], rtol=0, atol=2e-5)
        for i in range(3):
            token = int(one[i].argmax())
            states.all_token_ids.gpu[slots[i], len(PROMPTS[i]) + len(outputs[i])] = token
            outputs[i].append(token)


def test_v2_skips_rows_in_the_middle_of_a_prompt_and_resumes(vllm, make, params):
    states = States()
    states.put(3, PROMPTS[2], [33, 34])  # preempted before: its prefill includes two tokens
    processor = make(states)
    processor.add_request(3, params(EQUAL))
    raw = logits_of(1)
    assert torch.equal(processor.apply(raw.clone(), context([3], [4])), raw)
    written = processor.apply(raw.clone(), context([3], [7]))
    assert written.isfinite().sum() == 1
    [request] = processor._requests.values()
    assert (request.history.tail(0), len(request.output)) == (PROMPTS[2] + [33, 34], 2)


def test_v2_reuses_the_runners_slots(vllm, make, params):
    states = States()
    processor = make(states)
    for turn in range(6):
        states.put(1, [20 + turn, 5])
        processor.add_request(1, params(TILT))
        processor.apply(logits_of(1), context([1], [2]))
        assert in_use(processor) == 1
    processor.add_request(1, params(None))
    assert in_use(processor) == 0


def test_v2_asks_for_nothing_where_no_guided_request_runs(vllm, make, params):
    """After guided requests have ended, which this runner does not say, others pay nothing."""
    states = States()
    processor = make(states)
    for slot in (1, 2):
        states.put(slot, PROMPTS[slot])
        processor.add_request(slot, params(TILT))
    lengths = [len(PROMPTS[1]), len(PROMPTS[2])]
    processor.apply(logits_of(2), context([1, 2], lengths))
    assert in_use(processor) == 2
    states.all_token_ids.gpu = None
    raw = logits_of(1)
    assert torch.equal(processor.apply(raw.clone(), context([5], [9])), raw)
    assert in_use(processor) == 0


class Counted:
    """Token ids on the device, and how often the host asked for some."""

    def __init__(self, tokens):
        self.device, self.asked, self._tokens = tokens.device, 0, tokens

    def __getitem__(self, key):
        self.asked += 1
        return self._tokens[key]


def test_v2_asks_once_a_step_for_the_newest_tokens_of_all_rows(vllm, make, params):
    states, slots = States(), [6, 2, 4]
    processor = make(states)
    for i, slot in enumerate(slots):
        states.put(slot, PROMPTS[i])
        processor.add_request(slot, params([TILT, None, EQUAL][i]))
    lengths = [len(PROMPTS[i]) for i in range(3)]
    processor.apply(logits_of(3), context(slots, lengths))
    tokens = states.all_token_ids.gpu
    states.all_token_ids.gpu = counted = Counted(tokens)
    for step in range(4):
        for i, slot in enumerate(slots):
            tokens[slot, lengths[i]] = 30 + step
            lengths[i] += 1
        processor.apply(logits_of(3, seed=step), context(slots, lengths))
    assert counted.asked == 4
    histories = [processor._requests[slot].history.tail(0) for slot in (6, 4)]
    assert histories == [[*PROMPTS[i], 30, 31, 32, 33] for i in (0, 2)]


def test_v2_goes_on_with_a_request_that_was_away(vllm, make, params):
    states = States()
    processor = make(states)
    states.put(1, PROMPTS[1], [30])
    processor.add_request(1, params(TILT))
    before = processor.apply(logits_of(1), context([1], [4]))
    processor.apply(logits_of(1), context([5], [9]))
    again = processor.apply(logits_of(1), context([1], [4]))
    torch.testing.assert_close(again, before, rtol=0, atol=1e-5)
    assert processor._guide.scorer.stats.reused == 4


@pytest.mark.parametrize("v2", [False, True])
def test_the_ends_are_the_requests(vllm, make, params, v2):
    """At a used-up target each response is ended by its own tokens."""
    most = {"lenvm_mode": "at_most", "lenvm_target": 0}
    asked = [
        params(most),
        params(most, stop_token_ids=[30]),
        params(most, ignore_eos=True, stop_token_ids=[31, 32]),
    ]
    states = States()
    processor = make(states if v2 else None)
    for i, each in enumerate(asked):
        states.put(i, PROMPTS[i])
        if v2:
            processor.add_request(i, each)
    if not v2:
        added = [(i, each, PROMPTS[i], []) for i, each in enumerate(asked)]
        processor.update_state(update(vllm, added=added))
    where = context([0, 1, 2], [len(PROMPTS[i]) for i in range(3)]) if v2 else None
    raw = logits_of(3)
    raw[:, [1, 30, 31, 32]] = -30.0  # no candidates
    written = processor.apply(raw, where)
    left = [set(row.isfinite().nonzero()[:, 0].tolist()) for row in written]
    assert left == [{1}, {1, 30}, {31, 32}]


@pytest.mark.parametrize("v2", [False, True])
def test_weights_that_a_sleep_took_are_noticed(vllm, make, params, monkeypatch, v2):
    from lenvm_rl.vllm.processor import WeightWatch

    monkeypatch.setattr(WeightWatch, "_PAUSE", 0.0)
    states = States()
    states.put(0, PROMPTS[0])
    processor = make(states if v2 else None)
    if v2:
        processor.add_request(0, params(TILT))
    else:
        processor.update_state(update(vllm, added=[(0, params(TILT), PROMPTS[0], [])]))
    where = context([0], [len(PROMPTS[0])]) if v2 else None
    processor.apply(logits_of(1), where)
    processor.apply(logits_of(1), where)
    with torch.no_grad():
        processor._guide.scorer.model.score.summary.weight.zero_()
    raw = logits_of(1)
    with pytest.raises(RuntimeError, match="sleep level 1"):
        processor.apply(raw, where)
    assert torch.equal(raw, logits_of(1)), "nothing was written"


def test_greedy_rows_are_guided_too(make):
    assert make().is_argmax_invariant() is False
