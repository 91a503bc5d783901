"""Is a step of fixed shape the step, whatever stands in its padding, and can a graph hold it?"""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from lenvm_rl.guidance import History
from lenvm_rl.guidance.exact.fixed_step import (
    Bucket,
    FixedPass,
    FixedSteps,
    StepInputs,
    bucket_of,
    buckets_of,
    pieces_of,
)
from lenvm_rl.guidance.exact.prefix_kernels import PAGE
from tests.guidance.prefix_reference import reference_kernel
from tests.guidance.test_exact import (
    TRUNKS,
    VOCAB,
    Engine,
    K,
    draw,
    everything,
    make_lenvm,
    make_scorer,
    prompt,
    recomputed,
    worth_comparing,
)
from tests.tiny import FORWARD

LIMITS = {"slots": 48, "max_candidates": 20, "capacity": 4096}


@pytest.fixture(scope="module")
def lenvm():
    return make_lenvm(max_position_embeddings=2048)


def fixed_scorer(model, *, kernel=None, processors=1, **settings):
    """An exact scorer with steps of fixed shape, on a CPU, with any kernel."""
    scorer = make_scorer(model, fixed_shapes=True, **settings)
    scorer._fixed = FixedSteps(
        scorer._score_fixed,
        scorer._store,
        kernel=kernel,
        max_candidates=scorer.max_candidates,
        processors=processors,
    )
    return scorer


WAYS = {
    "sdpa": {},
    "kernel": {"kernel": reference_kernel},
}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ((1, 1, 1), (1, 8, PAGE)),
        ((3, 9, PAGE), (4, 16, PAGE)),
        ((33, 17, PAGE + 1), (48, 20, 4 * PAGE)),
        ((48, 20, 4000), (48, 20, 4096)),
        ((1, 8, 0), (1, 8, PAGE)),
    ],
)
def test_buckets(step, expected):
    assert bucket_of(*step, **LIMITS) == expected


@pytest.mark.parametrize("limits", [LIMITS, {**LIMITS, "capacity": 33_024, "slots": 64}])
def test_every_step_has_one_of_the_buckets_that_are_listed(limits):
    listed = {k: buckets_of(k, **limits) for k in (1, 9, 20)}
    rng = torch.Generator().manual_seed(0)
    met = {k: set() for k in listed}
    for k, found in met.items():
        for _ in range(3000):
            rows = int(torch.randint(1, limits["slots"] + 1, (1,), generator=rng))
            longest = int(limits["capacity"] ** torch.rand(1, generator=rng))
            found.add(bucket_of(rows, k, longest, **limits))
        assert found <= set(listed[k])
    assert met[9] == set(listed[9]) and len(listed[9]) == (21 if limits is LIMITS else 35)


def test_prefixes_are_cut_while_the_device_has_room_and_pages_allow():
    assert pieces_of(Bucket(1, 16, 2048), heads=2, processors=132) == 8  # of one page each
    assert pieces_of(Bucket(16, 16, 2048), heads=2, processors=132) == 4
    assert pieces_of(Bucket(64, 16, 2048), heads=2, processors=132) == 1
    assert pieces_of(Bucket(1, 16, 3 * PAGE), heads=2, processors=132) == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("trunk", TRUNKS)
def test_values_equal_a_full_recompute(trunk, way):
    model = make_lenvm(trunk)
    engine = Engine(model, fixed_scorer(model, **WAYS[way]), seed=trunk + way)
    engine.run(60)
    assert worth_comparing(engine) and engine.worst < FORWARD


IN_PIECES = {"kernel": reference_kernel, "processors": 100}


@pytest.mark.parametrize("way", [*WAYS.values(), IN_PIECES], ids=[*WAYS, "kernel_in_pieces"])
def test_prefixes_of_many_pages(lenvm, way):
    scorer = fixed_scorer(lenvm, max_length=700, **way)
    histories = [History(prompt(n, n), []) for n in (PAGE - 1, 1, 2 * PAGE + 40, PAGE)]
    slots = [scorer.open(history) for history in histories]
    for step in range(3):
        candidates = draw(4, step)
        found = scorer.score(slots, histories, candidates, everything(candidates))
        for i, history in enumerate(histories):
            expected = recomputed(lenvm, history, candidates[i])
            torch.testing.assert_close(found[i], expected, atol=FORWARD, rtol=0)
            history.output.append(int(candidates[i, step]))
    assert scorer.stats.committed == 2 * 4


@pytest.mark.parametrize("way", WAYS)
def test_a_padded_step_is_the_ragged_step(lenvm, way):
    ragged, fixed = make_scorer(lenvm), fixed_scorer(lenvm, **WAYS[way])
    histories = [History(prompt(n, n), []) for n in (3, 50, 21)]
    mask = torch.tensor([[True] * K, [True, False] * 3, [False] * K])
    slots = [[scorer.open(history) for history in histories] for scorer in (ragged, fixed)]
    for step in range(4):
        candidates = draw(3, step)
        expected = ragged.score(slots[0], histories, candidates, mask)
        found = fixed.score(slots[1], histories, candidates, mask)
        torch.testing.assert_close(found, expected, atol=FORWARD, rtol=0)
        for row, history in enumerate(histories):
            history.output.append(int(candidates[row, 2 * step % K]))


@torch.inference_mode()
@pytest.mark.parametrize("way", WAYS)
def test_what_padding_holds_never_matters(lenvm, way):
    results = []
    for filler in (0.0, 1e4):
        scorer = fixed_scorer(lenvm, **WAYS[way])
        history = History(prompt(30), [])
        slot = scorer.open(history)
        candidates = draw(1, 0)
        scorer.score([slot], [history], candidates, everything(candidates))
        store = scorer._store
        known = torch.from_numpy(store.cells(slot, np.arange(30 + K)))
        unknown = torch.ones(store.keys.shape[1], dtype=torch.bool).index_fill(0, known, False)
        for buffer in (store.keys, store.values):
            buffer[:, unknown] = filler  # behind what is known, the padding's, and free pages
        for inputs in (step.inputs for step in scorer._fixed._steps.values()):
            inputs.ids.fill_(int(filler) % VOCAB)
        history.output.append(int(candidates[0, 1]))
        results.append(scorer.score([slot], [history], draw(1, 1), everything(candidates)))
    torch.testing.assert_close(*results, atol=0, rtol=0)


def test_steps_of_one_bucket_share_their_buffers(lenvm):
    scorer = fixed_scorer(lenvm, slots=8)
    histories = [History(prompt(n, n), []) for n in (5, 6, 7, 8, 9)]
    slots = [scorer.open(history) for history in histories]
    for rows in (3, 4, 1, 5, 3):
        candidates = draw(rows, rows)
        scorer.score(slots[:rows], histories[:rows], candidates, everything(candidates))
    assert sorted(bucket.rows for bucket in scorer._fixed._steps) == [1, 4, 8]


# --- nothing on the step's path asks for the content of a tensor ------------------------------


def fake_step(scorer, kernel=None, score=None):
    """The step that a graph would be captured of, on tensors without content."""
    bucket = bucket_of(3, K, 40, slots=4, max_candidates=K, capacity=scorer._store.capacity)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.inference_mode():
        inputs = StepInputs(bucket, scorer._store.slots - 1, torch.device("cpu"))
        store = scorer._store
        store.keys, store.values = map(mode.from_tensor, (store.keys, store.values))
        step = FixedPass(store, inputs, kernel, 1)
        return (score or scorer._score_fixed)(inputs.ids.flatten(), step)


def shapes_alone(query, keys, values, prefixes, scale):
    """In a kernel's place."""
    return torch.empty_like(query), query.new_empty(query.shape[:2], dtype=torch.float32)


@pytest.mark.parametrize("kernel", [None, shapes_alone])
@pytest.mark.parametrize("trunk", ["llama", "qwen2_partly_windowed", "qwen3"])
def test_the_step_needs_no_content_of_a_tensor(trunk, kernel):
    scorer = fixed_scorer(make_lenvm(trunk))
    assert fake_step(scorer, kernel).shape == (4 * K,)


def test_a_step_that_does_is_found_out(lenvm):
    scorer = fixed_scorer(lenvm)

    def asks(ids, step):
        return ids[: int(step.position.max().item())]

    with pytest.raises(DataDependentOutputException):
        fake_step(scorer, score=asks)


# --- on a GPU ----------------------------------------------------------------------------------

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


class TestOnGPU:
    """Not run yet: the machines that this was written on have no GPU."""

    pytestmark = on_gpu

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_replayed_steps_are_those_of_a_cpu(self, dtype):
        model = make_lenvm(initializer_range=0.1).to(dtype)
        there = make_lenvm(initializer_range=0.1).to("cuda", dtype)
        scorers = make_scorer(model), make_scorer(there)
        histories = [History(prompt(n, n), []) for n in (3, 50, 21)]
        slots = [[scorer.open(history) for history in histories] for scorer in scorers]
        close = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0}
        for step in range(6):
            candidates = draw(3, step)
            mask = everything(candidates)
            expected = scorers[0].score(slots[0], histories, candidates, mask)
            found = scorers[1].score(slots[1], histories, candidates.cuda(), mask.cuda())
            torch.testing.assert_close(found.cpu(), expected, **close)
            for row, history in enumerate(histories):
                history.output.append(int(candidates[row, step]))
        assert scorers[1]._fixed._captures, "graphs could not be captured"
        assert scorers[1].stats.committed == 5 * 3

    def test_a_step_waits_for_nothing(self):
        scorer = make_scorer(make_lenvm().cuda().bfloat16())
        histories = [History(prompt(n, n), []) for n in (3, 50, 21)]
        slots = [scorer.open(history) for history in histories]
        drawn, found = [draw(3, step) for step in range(4)], []
        for step, candidates in enumerate(x.cuda() for x in drawn):
            if step == 2:  # captured, and the last step's candidates are kept
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
            try:
                mask = torch.ones_like(candidates) > 0
                found.append(scorer.score(slots, histories, candidates, mask))
            finally:
                torch.cuda.set_sync_debug_mode("default")
            for row, history in enumerate(histories):
                history.output.append(int(drawn[step][row, 0]))
        # A step that waits has raised above; those that did not have values.
        assert all(logits.isfinite().all() for logits in found)
