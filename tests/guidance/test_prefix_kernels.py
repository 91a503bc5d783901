"""Do partial softmaxes merge into the whole one, and is a kernel that errs found out?"""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lenvm_rl.guidance.exact import prefix_kernels
from lenvm_rl.guidance.exact.cache import KeyValueShape, KeyValueStore
from lenvm_rl.guidance.exact.prefix_kernels import KERNELS, checked, merge_attention, prefix_kernel
from tests.guidance.prefix_reference import reference_kernel

HERE = {"head_dim": 8, "dtype": torch.float32, "device": torch.device("cpu")}


def partial_attention(scores, values):
    """Output and log-sum-exp of the softmax over these keys: [Q, k], [k, D] -> [Q, D], [Q]."""
    if scores.shape[1] == 0:
        return torch.zeros(len(scores), values.shape[1]).to(scores), scores.logsumexp(-1)
    weights = scores.softmax(-1).nan_to_num(0.0)  # a row of -inf sees nothing
    return weights @ values, scores.logsumexp(-1)


def test_two_parts_by_hand():
    # weights e^0 and e^ln3 = 1 : 3, so (1 * 4 + 3 * 8) / 4 = 7 and ln 4
    outputs = torch.tensor([[[4.0]], [[8.0]]])
    lses = torch.tensor([[0.0], [math.log(3.0)]])
    merged, lse = merge_attention(outputs, lses)
    torch.testing.assert_close(merged, torch.tensor([[7.0]]))
    torch.testing.assert_close(lse, torch.tensor([math.log(4.0)]))


@given(
    seed=st.integers(0, 10_000),
    cuts=st.lists(st.integers(0, 17), max_size=4),
    scale=st.sampled_from([0.1, 1.0, 30.0, 500.0]),
)
def test_any_split_gives_the_softmax_over_all_keys(seed, cuts, scale):
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randn(5, 17, generator=rng, dtype=torch.float64) * scale
    scores[0, :9] = -torch.inf  # masked keys
    values = torch.randn(17, 3, generator=rng, dtype=torch.float64)
    bounds = [0, *sorted(cuts), 17]
    parts = [
        partial_attention(scores[:, a:b], values[a:b])
        for a, b in zip(bounds, bounds[1:], strict=False)
    ]
    merged, lse = merge_attention(*map(torch.stack, zip(*parts, strict=True)))
    torch.testing.assert_close(merged, scores.softmax(-1) @ values, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(lse, scores.logsumexp(-1), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("empty", [torch.inf, -torch.inf])
@pytest.mark.parametrize("garbage", [0.0, torch.nan, torch.inf])
def test_a_part_without_keys_changes_nothing(empty, garbage):
    outputs = torch.tensor([[[1.5, -2.0]], [[garbage, garbage]]])
    merged, lse = merge_attention(outputs, torch.tensor([[0.3], [empty]]))
    assert merged.tolist() == [[1.5, -2.0]]
    torch.testing.assert_close(lse, torch.tensor([0.3]))


def test_no_keys_at_all_are_zero_and_minus_infinity():
    merged, lse = merge_attention(torch.full((2, 3, 4), 9.0), torch.full((2, 3), -torch.inf))
    assert not merged.any() and (lse == -torch.inf).all()


def test_half_precision_parts_are_merged_in_float32():
    merged, lse = merge_attention(
        torch.ones(2, 1, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16)
    )
    assert merged.dtype == lse.dtype == torch.float32
    torch.testing.assert_close(lse, torch.tensor([math.log(2.0)]))


# --- which kernel is trusted -------------------------------------------------------------------


def test_a_kernel_that_is_right_is_taken_as_it_is():
    assert checked(reference_kernel, **HERE) is reference_kernel


def test_a_turned_log_sum_exp_is_turned_back():
    def turned(*args):
        output, lse = reference_kernel(*args, empty=-torch.inf)
        return output, lse.T.contiguous()

    seen = []
    kernel = checked(lambda *args: seen.append(args) or turned(*args), **HERE)
    _, lse = kernel(*seen[0])
    assert torch.equal(lse, reference_kernel(*seen[0], empty=-torch.inf)[1])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda output, lse: (output * 1.2, lse), "off by .* 5 keys"),
        (lambda output, lse: (output, lse + 0.5), "off by 0.5"),
        (lambda output, lse: (output, lse * math.log2(math.e)), "off by"),
        (lambda output, lse: (output, lse.nan_to_num(posinf=0.0)), "finite log-sum-exp over no"),
        (lambda output, lse: (output * torch.nan, lse), "off by nan"),
        (lambda output, lse: (output, lse[:, :2]), r"shape \(7, 2\)"),
    ],
)
def test_a_kernel_that_errs_is_refused(spoil, message):
    with pytest.raises(ValueError, match=message):
        checked(lambda *args: spoil(*reference_kernel(*args)), **HERE)


def test_a_cpu_has_no_kernel():
    shape = KeyValueShape(2, 8, 8, torch.float32)
    assert prefix_kernel(KeyValueStore([shape], slots=1, capacity=256, device="cpu")) is None


@pytest.fixture
def cuda_store():
    """What `prefix_kernel` reads of a store on a GPU."""
    here = torch.zeros(1, 4, 2, 8)
    return SimpleNamespace(
        keys=here, values=here, dtype=torch.bfloat16, device=torch.device("cuda")
    )


@pytest.fixture
def trusted(monkeypatch):
    """Every kernel that can be made is right."""
    monkeypatch.setattr(prefix_kernels, "checked", lambda kernel, **here: kernel)


def test_what_an_engine_brings_is_tried_first(cuda_store, trusted, monkeypatch, caplog):
    monkeypatch.setattr(prefix_kernels, "KERNELS", {"torch": lambda: "torch's"})
    assert prefix_kernel(cuda_store) == "torch's"
    assert prefix_kernel(cuda_store, {"engine": lambda: "the engine's"}) == "the engine's"

    def absent():
        raise ImportError("not in this build")

    assert prefix_kernel(cuda_store, {"engine": absent}) == "torch's"
    assert not caplog.records, "nothing is slower than it could be"


def test_a_gpu_without_any_is_warned_of(cuda_store, monkeypatch, caplog):
    def absent():
        raise ImportError("not installed")

    def wrong(kernel, **here):
        raise ValueError("it is off by 3")

    monkeypatch.setattr(prefix_kernels, "KERNELS", {"one": absent, "other": lambda: None})
    monkeypatch.setattr(prefix_kernels, "checked", wrong)
    assert prefix_kernel(cuda_store) is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "one: not installed; other: it is off by 3" in record.getMessage()
    assert "torch.bfloat16" in record.getMessage()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_has_one():
    found = {}
    for name, make in KERNELS.items():
        try:
            found[name] = checked(
                make(), head_dim=64, dtype=torch.bfloat16, device=torch.device("cuda")
            )
        except ImportError:
            continue
    assert found
