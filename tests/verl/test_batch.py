"""Is every completion in the batch once, whole, and with the right counts?"""

import numpy as np
import pytest
import torch

from lenvm_rl.verl.batch import make_batch
from lenvm_rl.verl.pretrain.objective import LengthValueLoss
from tests.verl.engines import make_rows

DROP = LengthValueLoss(gamma=0.9)
CENSORED = LengthValueLoss(gamma=0.9, truncated="censored")


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_row_is_there_once_with_its_tokens(workers):
    rows = make_rows(7)
    batch = make_batch(rows, loss=DROP, workers=workers)
    assert len(batch) % workers == 0
    index = batch["row_index"].tolist()
    assert sorted(i for i in index if i >= 0) == list(range(7))
    for i, ids, position in zip(
        index, batch["input_ids"].unbind(), batch["position_ids"].unbind(), strict=True
    ):
        assert position.tolist() == list(range(len(ids)))
        if i >= 0:
            assert ids.tolist() == [*rows[i].prompt_ids, *rows[i].response_ids]


def test_filling_rows_have_no_weight():
    batch = make_batch(make_rows(5), loss=DROP, workers=2, multiple=8)
    filling = batch["row_index"] < 0
    assert int(filling.sum()) == 3
    for name in ("row_weight", "loss_mask"):
        assert batch[name][filling].abs().sum() == 0
        assert (batch[name][~filling] > 0).all()


@pytest.mark.parametrize(("loss", "share"), [(DROP, 0.0), (CENSORED, 1.0)])
def test_cut_rows_count_only_where_they_are_trained_on(loss, share):
    rows = make_rows(6, cut_every=2)
    batch = make_batch(rows, loss=loss, workers=1)
    for i, counted, finished in zip(
        batch["row_index"], batch["loss_mask"], batch["finished"], strict=True
    ):
        row = rows[int(i)]
        assert bool(finished) is not row.truncated
        assert int(counted) == (row.length * share if row.truncated else row.length)


def test_workers_get_about_the_same_work():
    rows = make_rows(64, longest=120)
    lengths = make_batch(rows, loss=DROP, workers=4)["input_ids"].offsets().diff()
    work = lengths.view(4, 16).sum(1).double()
    assert work.max() / work.min() < 1.2
    plain = make_batch(rows, loss=DROP, workers=4, balance=False)
    assert plain["row_index"].tolist() == list(range(64))


def test_token_ids_may_be_arrays():
    row = make_rows(1)[0]
    row.prompt_ids = np.asarray(row.prompt_ids, dtype=np.int32)
    batch = make_batch([row], loss=DROP, workers=1)
    assert batch["input_ids"].dtype == torch.int64


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one completion"):
        make_batch([], loss=DROP, workers=1)
