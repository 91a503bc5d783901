"""A malformed row is refused with its name, the reason and a remedy."""

from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pytest
import torch

from lenvm_rl.rollouts import Rollout
from lenvm_rl.rollouts.columns import content_digest, list_view, row_digests, run_starts
from lenvm_rl.rollouts.record import SCHEMA, batch_to_rows, check_batch, rows_to_batch

GOOD = dict(
    prompt_id="p",
    sample_id=3,
    prompt_ids=[5, 6],
    response_ids=[7, 0],
    finish_reason="stop",
)


def check(*rows, **rules):
    batch = rows_to_batch([Rollout(**{**GOOD, **row}) for row in rows])
    check_batch(batch, source="shard.parquet", first_row=100, **rules)
    return batch_to_rows(batch)


def test_good_rows_pass_as_they_are():
    truncated = {"finish_reason": "length", "response_ids": [7]}
    passed = check({}, truncated, vocab_size=8, eos_ids=[0])
    assert passed == [Rollout(**GOOD), Rollout(**{**GOOD, **truncated})]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"response_ids": []}, "response_ids is empty"),
        ({"prompt_ids": []}, "prompt_ids is empty; state s_0"),
        ({"response_ids": [8, 0]}, "token id 8, outside the vocabulary of 8"),
        ({"response_ids": [-1, 0]}, "token id -1"),
        ({"prompt_ids": [9]}, "prompt_ids holds token id 9"),
        ({"finish_reason": "eos"}, "finish_reason 'eos' is unknown"),
        ({"response_ids": [7, 7]}, "last token is 7, not an EOS of .0."),
        ({"finish_reason": None}, "finish_reason is null"),
        ({"data_source": None}, "data_source is null"),
        ({"response_logprobs": [-1.0]}, "1 entries for 2 response tokens"),
        ({"loss_mask": [1, 2]}, "loss_mask covers 3 of 2 response tokens.*must sum to"),
        ({"loss_mask": []}, "loss_mask covers 0 of 2"),
        ({"loss_mask": [1, 0, 1]}, "run lengths are at least 1 token"),
        ({"loss_mask": [3, -1]}, "run lengths are at least 1 token"),
        ({"loss_mask": [0, 2]}, "leaves no generated token"),
        ({"segments": [{"name": "x", "start": 1, "end": 3}]}, "not lie in the response of 2 tok"),
        ({"segments": [{"name": "x", "start": 1, "end": 0}]}, "not lie in the response of 2 tok"),
        ({"pictures": [""]}, "names '', which is no SHA-256"),
        ({"segments": [{"name": "x", "start": 1}]}, "each has a name, a start and an end"),
        ({"turn": -1}, "turn is -1: turns of a session count from 0"),
        ({"reward": float("nan")}, "reward is nan: give a finite number, or none"),
        ({"pictures": ["cat.png"]}, "'cat.png', which is no SHA-256"),
    ],
)
def test_the_bad_row_is_named(row, reason):
    """It is the third of three, so that an error in counting shows."""
    with pytest.raises(ValueError, match=reason) as error:
        check({}, {}, row, vocab_size=8, eos_ids=[0])
    assert "shard.parquet, row 102 (prompt_id 'p', sample_id 3)" in str(error.value)


def test_guidance_of_other_writers_is_an_object():
    batch = rows_to_batch([Rollout(**GOOD)])
    place = SCHEMA.get_field_index("guidance")
    for text in ("[1]", "at_most"):
        other = batch.set_column(place, SCHEMA.field(place), pa.array([text]))
        with pytest.raises(ValueError, match="row 0 .*not a JSON object"):
            check_batch(other, source="shard.parquet")


def test_without_rules_only_what_is_always_wrong_is_refused():
    check({"response_ids": [70_000, 7]})
    with pytest.raises(ValueError, match="token id -5"):
        check({"response_ids": [-5]})


def test_row_numbers_are_right_in_a_slice():
    batch = rows_to_batch([Rollout(**{**GOOD, "response_ids": ids}) for ids in ([1], [2], [9])])
    with pytest.raises(ValueError, match="row 1 "):
        check_batch(batch.slice(1), source="x", vocab_size=8)


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"response_ids": [2**31, 0]}, "response_ids"),
        ({"response_ids": [1.5, 0]}, "response_ids"),
        ({"response_ids": "text"}, "response_ids"),
        ({"prompt_ids": None}, "prompt_ids"),
        ({"prompt_id": 7}, "prompt_id"),
        ({"sampling": {"temperature": "hot"}}, "sampling"),
        ({"guidance": "at_most"}, "guidance"),
        ({"guidance": {"lenvm_beta": float("inf")}}, "guidance"),
        ({"loss_mask": [1.5, 0.5]}, "loss_mask"),
        ({"reward": "good"}, "reward"),
    ],
)
def test_a_value_that_does_not_fit_names_row_and_column(row, column):
    rows = [Rollout(**GOOD), Rollout(**{**GOOD, "sample_id": 4, **row})]
    with pytest.raises(ValueError, match=f"sample_id 4: column {column} does not fit"):
        rows_to_batch(rows)


def test_ids_may_be_arrays_or_tensors():
    want = Rollout(**GOOD)
    for ids in (np.array([7, 0]), np.array([7, 0], dtype=np.uint16), torch.tensor([7, 0])):
        row = Rollout(**{**GOOD, "response_ids": ids})
        assert batch_to_rows(rows_to_batch([row])) == [want]


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match=r"sampling has unknown keys \['temp'\].*temperature"):
        Rollout(**GOOD, sampling={"temp": 1.0})
    with pytest.raises(ValueError, match=r"policy has unknown keys \['path'\]"):
        Rollout(**GOOD, policy={"path": "x"})


def test_missing_settings_become_none():
    row = Rollout(**GOOD, sampling={"temperature": 1.0})
    assert row.sampling["temperature"] == 1.0
    assert row.sampling["top_k"] is None
    assert row.policy == {"name": None, "revision": None}


def test_length_and_cut():
    row = Rollout(**GOOD)
    assert (row.length, row.truncated) == (2, False)
    assert Rollout(**{**GOOD, "finish_reason": "length"}).truncated
    assert list(row.to_dict()) == SCHEMA.names


def test_slices_convert_to_the_rows_they_hold():
    rows = [Rollout(**{**GOOD, "sample_id": n, "response_ids": [n] * n + [0]}) for n in range(6)]
    assert batch_to_rows(rows_to_batch(rows).slice(2, 3)) == rows[2:5]


def test_digests_follow_content_alone():
    column = pa.array([[1, 2], [1, 2], [2, 1], [1, 2, 0], [1, 2]], type=pa.list_(pa.int32()))
    digests = row_digests(column)
    assert len(set(digests.tolist())) == 3
    assert digests[0] == digests[1] == digests[4]
    assert row_digests(column.slice(2)).tolist() == digests[2:].tolist()
    assert row_digests(column, key=b"other")[0] != digests[0]
    values, offsets = list_view(column)
    assert content_digest(values[offsets[2] : offsets[3]]) == digests[2]


def test_digest_is_the_same_on_every_machine():
    """blake2b (8 bytes, little-endian) of 01000000 02000000."""
    column = pa.array([[1, 2]], type=pa.list_(pa.int32()))
    raw = blake2b(bytes.fromhex("0100000002000000"), digest_size=8).digest()
    assert int(row_digests(column)[0]) == int.from_bytes(raw, "little")


def test_runs():
    assert run_starts(pa.array(["a", "a", "b", "a", "a"])).tolist() == [0, 2, 3]
    assert run_starts(pa.array(["a"])).tolist() == [0]
