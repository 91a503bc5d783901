"""Are values right where rows have fewer pages than they want, and does nobody fail or lose one?"""

import pytest
import torch

from lenvm_rl.guidance import GuidanceSettings, Guide, GuidedRow, History
from lenvm_rl.guidance.exact.cache import KeyValueShape, KeyValueStore
from lenvm_rl.guidance.heads.q_head import QHeadScorer
from tests.guidance.prefix_reference import reference_kernel
from tests.guidance.test_distribution import make_lenvm as make_head
from tests.guidance.test_exact import (
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
from tests.guidance.test_fixed_step import fixed_scorer
from tests.tiny import FORWARD

WAYS = {
    "ragged": (make_scorer, {}),
    "fixed": (fixed_scorer, {}),
    "kernel": (fixed_scorer, {"kernel": reference_kernel}),
}


@pytest.fixture(scope="module")
def lenvm():
    return make_lenvm(max_position_embeddings=4096)


def scorer_with(make, model, rows: float, **settings):
    """A scorer whose pages hold so many rows at their longest."""
    sizes = {"max_length": 100} | settings
    whole = make(model, **sizes).memory
    return make(model, **sizes, memory=int(rows * whole.cache(1, sizes["max_length"])))


def no_page_is_lost(scorer):
    store = scorer._store
    given = [page for slot, held in enumerate(store.held) for page in store.table[slot, :held]]
    assert len(set(given)) == len(given) and not set(given) & set(store._free)
    assert len(given) + store.free == store.pages


@pytest.mark.parametrize("rows", [1, 1.5, 2.5])
@pytest.mark.parametrize("seed", range(3))
def test_values_stay_exact_with_few_pages(lenvm, rows, seed):
    scorer = scorer_with(make_scorer, lenvm, rows, chunk_tokens=(7, 64, 2048)[seed])
    engine = Engine(lenvm, scorer, seed)
    engine.run(80)
    assert worth_comparing(engine) and engine.worst < FORWARD
    assert scorer.stats.evicted > 0 and scorer.pages[1] < 4 * scorer._store.table.shape[1]
    no_page_is_lost(scorer)


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_do_not_fit_together_take_turns(lenvm, way):
    make, how = WAYS[way]
    scorer = scorer_with(make, lenvm, 1.3, max_length=900, **how)
    histories = [History(prompt(n, n), []) for n in (400, 600, 30, 830)]
    slots = [scorer.open(history) for history in histories]
    for step in range(3):
        candidates = draw(4, step)
        mask = everything(candidates)
        mask[:, step] = False
        found = scorer.score(slots, histories, candidates, mask)
        for i, history in enumerate(histories):
            expected = recomputed(lenvm, history, candidates[i]).masked_fill(~mask[i], 0.0)
            torch.testing.assert_close(found[i], expected, atol=FORWARD, rtol=0)
            history.output.append(int(candidates[i, step - 1]))
    assert scorer.stats.evicted > 0
    no_page_is_lost(scorer)


def test_a_candidate_head_reads_again_what_was_taken():
    model = make_head("candidate", target="return", bins=None)
    roomy, tight = (
        QHeadScorer(model, slots=4, max_length=90, memory=memory)
        for memory in (None, QHeadScorer(model, slots=1, max_length=90).cache_bytes)
    )
    histories = [History(prompt(n, n), []) for n in (70, 3, 85, 40)]
    slots = [[scorer.open(history) for history in histories] for scorer in (roomy, tight)]
    for step in range(4):
        candidates = draw(4, step)
        mask = everything(candidates)
        expected = roomy.score(slots[0], histories, candidates, mask)
        found = tight.score(slots[1], histories, candidates, mask)
        torch.testing.assert_close(found, expected, atol=FORWARD, rtol=0)
        for i, history in enumerate(histories):
            history.output.append(int(candidates[i, 0]))
    assert tight.stats.evicted > 0 == roomy.stats.evicted
    no_page_is_lost(tight)


def test_a_full_pool_guides_every_request_of_a_batch(lenvm):
    """In the whole loop, through `Guide`, closing and opening."""
    scorer = scorer_with(make_scorer, lenvm, 1, slots=8)
    roomy = make_scorer(lenvm, slots=8)
    guides = [Guide(x, eos_token_ids=[1], max_candidates=K) for x in (scorer, roomy)]
    rows = [
        GuidedRow(i, i, GuidanceSettings(mode="tilt", beta=-5.0, min_p=0.0), History(ids, []), 40)
        for i, ids in enumerate(prompt(40, i) for i in range(8))
    ]
    draws = torch.Generator().manual_seed(0)
    for step in range(4):
        logits = torch.randn(8, lenvm.config.vocab_size, generator=draws)
        written = [logits.clone() for _ in guides]
        for guide, own in zip(guides, written, strict=True):
            guide.apply(own, rows)
        torch.testing.assert_close(
            written[0].softmax(-1), written[1].softmax(-1), atol=1e-4, rtol=0
        )
        for row, token in zip(rows, written[1].argmax(-1).tolist(), strict=True):
            row.history.output.append(token)
            if step == 1 and row.index % 2:
                for guide in guides:
                    guide.close(row.key)
    assert scorer.stats.evicted > 0
    no_page_is_lost(scorer)


def test_pages_go_round():
    store = KeyValueStore(
        [KeyValueShape(1, 2, 2, torch.float32)], slots=2, capacity=8, device="cpu", page=2, pages=5
    )
    assert (store.lacking(0, 5), store.lacking(0, 0)) == (3, 0)
    store.grow(0, 5)
    store.grow(1, 3)
    assert store.free == 0 and store.lacking(1, 4) == 0
    with torch.no_grad():
        store.keys[0, store.cells(0, range(6))] = torch.arange(6.0)[:, None, None]
    store.copy(0, 1, 0, 3)
    assert store.keys[0, store.cells(1, range(3)), 0, 0].tolist() == [0.0, 1.0, 2.0]
    assert store.shrink(0, 2) == 2 and store.free == 2
    assert store.shrink(0, 9) == 0 and store.free == 3
    table = store.on_device()
    store.grow(0, 6)
    assert store.on_device() is table and table.tolist() == store.table.tolist()
