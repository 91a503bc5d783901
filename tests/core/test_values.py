"""length <-> value <-> horizon <-> logit: exact values, round trips, saturation, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lenvm_rl.core import (
    check_gamma,
    gamma_for_length,
    gamma_from_lengths,
    length_to_logit,
    length_to_u,
    length_to_value,
    logit_error_floor,
    logit_to_length,
    logit_to_u,
    logit_to_value,
    resolution_limit,
    u_to_length,
    value_to_length,
    value_to_logit,
)

GAMMAS = (0.99, 0.995, 0.997, 0.999, 0.9998, 0.99995)
LENGTHS = torch.logspace(0, 5, 201).round().unique()  # 1 .. 100,000 tokens, float32
EPS = torch.finfo(torch.float32).eps

lengths = st.integers(min_value=1, max_value=100_000)
gammas = st.floats(min_value=0.9, max_value=0.99995)


def test_values_by_hand():
    length = torch.tensor([[0, 1], [2, 3]])
    assert_close(length_to_value(length, gamma=0.5), torch.tensor([[0.0, -0.5], [-0.75, -0.875]]))
    assert_close(length_to_u(length, gamma=0.5), torch.tensor([[0.0, 0.5], [0.75, 0.875]]))
    value = torch.tensor([0.0, -0.5, -0.75, -0.875])
    assert_close(value_to_length(value, gamma=0.5), torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert_close(u_to_length(-value, gamma=0.5), torch.tensor([0.0, 1.0, 2.0, 3.0]))


def test_logits_by_hand():
    # sigmoid(0) = 1/2 and sigmoid(ln 3) = 3/4: one and two tokens at gamma 1/2.
    logit = torch.tensor([0.0, math.log(3.0)])
    assert_close(logit_to_value(logit), torch.tensor([-0.5, -0.75]))
    assert_close(logit_to_u(logit), torch.tensor([0.5, 0.75]))
    assert_close(logit_to_length(logit, gamma=0.5), torch.tensor([1.0, 2.0]))
    assert_close(length_to_logit(torch.tensor([1, 2]), gamma=0.5), logit, atol=1e-7, rtol=1e-6)
    assert_close(value_to_logit(torch.tensor([-0.5, -0.75])), logit, atol=1e-7, rtol=1e-6)


def test_ends_of_the_range():
    assert length_to_value(0.0, gamma=0.997) == 0.0
    assert value_to_length(0.0, gamma=0.997) == 0.0
    assert value_to_length(-1.0, gamma=0.997) == math.inf
    assert length_to_value(math.inf, gamma=0.997) == -1.0
    assert length_to_logit(0.0, gamma=0.997) == -math.inf
    assert logit_to_length(-math.inf, gamma=0.997) == 0.0
    assert value_to_logit(-1.0) == math.inf
    assert value_to_logit(0.0) == -math.inf


@pytest.mark.parametrize("gamma", GAMMAS)
def test_length_to_value_is_exact_in_float32(gamma):
    exact = torch.tensor([math.expm1(n * math.log(gamma)) for n in LENGTHS.tolist()])
    assert length_to_value(LENGTHS, gamma=gamma).dtype == torch.float32
    assert_close(length_to_value(LENGTHS, gamma=gamma), exact, rtol=3 * EPS, atol=0.0)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_length_to_logit_is_exact_in_float32(gamma):
    def exact(n: float) -> float:
        x = -n * math.log(gamma)
        return x + math.log(-math.expm1(-x))

    expected = torch.tensor([exact(n) for n in LENGTHS.tolist()])
    assert_close(length_to_logit(LENGTHS, gamma=gamma), expected, rtol=3 * EPS, atol=3 * EPS)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_logit_to_length_is_exact_in_float32(gamma):
    logit = torch.linspace(-12.0, 1000.0, 5001)

    def exact(z: float) -> float:
        return (max(z, 0.0) + math.log1p(math.exp(-abs(z)))) / -math.log(gamma)

    expected = torch.tensor([exact(z) for z in logit.tolist()])
    assert_close(logit_to_length(logit, gamma=gamma), expected, rtol=4 * EPS, atol=0.0)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_length_survives_the_logit_up_to_its_error_floor(gamma):
    logit = length_to_logit(LENGTHS, gamma=gamma)
    error = (logit_to_length(logit, gamma=gamma) - LENGTHS).abs() / LENGTHS
    assert (error <= logit_error_floor(logit, dtype=torch.float32) + 4 * EPS).all()
    assert error.max() < 2e-6


@given(n=lengths, gamma=gammas)
@settings(deadline=None, max_examples=200)
def test_round_trips_in_float64(n, gamma):
    length = torch.tensor(n, dtype=torch.float64)
    through_logit = logit_to_length(length_to_logit(length, gamma=gamma), gamma=gamma)
    assert_close(through_logit, length, rtol=1e-12, atol=0.0)
    if n < 0.5 * resolution_limit(gamma=gamma, dtype=torch.float64, from_logit=False):
        through_value = value_to_length(length_to_value(length, gamma=gamma), gamma=gamma)
        assert_close(through_value, length, rtol=1e-6, atol=0.0)


@given(z=st.floats(min_value=-30, max_value=30))
@settings(deadline=None, max_examples=100)
def test_value_of_logit_round_trip(z):
    logit = torch.tensor(z, dtype=torch.float64)
    # Near V = -1 the logit is only as good as the digits left in 1 + V.
    tolerance = 1e-14 * math.exp(max(z, 0.0)) + 1e-12
    assert_close(value_to_logit(logit_to_value(logit)), logit, rtol=0.0, atol=tolerance)


@given(n=lengths, more=st.integers(min_value=1, max_value=1000), gamma=gammas)
@settings(deadline=None, max_examples=100)
def test_order_of_the_scales(n, more, gamma):
    pair = torch.tensor([n, n + more], dtype=torch.float64)
    logit = length_to_logit(pair, gamma=gamma)
    assert logit[1] > logit[0]
    horizon = length_to_u(pair, gamma=gamma)
    assert horizon[1] >= horizon[0]
    assert torch.equal(length_to_value(pair, gamma=gamma), -horizon)


def test_bellman_equation():
    # G_t = r + gamma G_{t+1}, LenVM eq. 3.
    gamma = 0.997
    value = length_to_value(torch.arange(0, 5000, dtype=torch.float64), gamma=gamma)
    assert_close(value[1:], -(1 - gamma) + gamma * value[:-1], rtol=1e-12, atol=1e-15)


def test_golden_numbers_of_naive_precision():
    """What the logit form avoids, at gamma .997 (docs: horizon module)."""
    gamma = 0.997
    logit = length_to_logit(torch.tensor([3000.0, 5000.0, 5600.0]), gamma=gamma)
    naive = torch.log1p(-torch.sigmoid(logit)) / math.log(gamma)
    assert 50 < (naive[1] - 5000).abs() < 75  # "off by 60 tokens at 5,000"
    assert naive[2] == math.inf
    last_finite = torch.log1p(torch.tensor(-1 + 2.0**-23)) / math.log(gamma)
    assert last_finite.round() == 5306
    # A bfloat16 sigmoid of 3,000 tokens rounds to one; clamped by one float32 eps it reads 5,306.
    coarse = torch.sigmoid(logit[0].bfloat16()).float().clamp(max=1 - EPS)
    assert u_to_length(coarse, gamma=gamma).round() == 5306
    assert logit_to_length(logit[0].bfloat16(), gamma=gamma).floor() == 2995


def test_dtypes():
    for dtype in (torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32):
        assert length_to_value(torch.ones(2, dtype=dtype), gamma=0.9).dtype == torch.float32
    assert length_to_value(torch.ones(2, dtype=torch.float64), gamma=0.9).dtype == torch.float64
    assert length_to_value(3, gamma=0.9).dtype == torch.float64
    assert logit_to_value(torch.zeros(2, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("gamma", GAMMAS)
def test_gradients_are_finite_and_right(gamma):
    logit = torch.linspace(-15, 200, 87, dtype=torch.float64, requires_grad=True)
    logit_to_length(logit, gamma=gamma).sum().backward()
    expected = torch.sigmoid(logit.detach()) / -math.log(gamma)
    assert_close(logit.grad, expected, rtol=1e-12, atol=0.0)
    single = torch.linspace(-90, 90, 181, requires_grad=True)
    (logit_to_length(single, gamma=gamma) + logit_to_value(single)).sum().backward()
    assert single.grad.isfinite().all()
    length = LENGTHS.clone().requires_grad_()
    length_to_logit(length, gamma=gamma).sum().backward()
    assert length.grad.isfinite().all() and (length.grad > 0).all()


@pytest.mark.parametrize(
    ("length", "gamma"), [(1533, 0.997), (4603, 0.999), (23_024, 0.9998), (458, 0.99)]
)
def test_gamma_for_length(length, gamma):
    assert gamma_for_length(length) == pytest.approx(gamma, abs=(1 - gamma) * 1e-3)
    horizon = length_to_u(length, gamma=gamma_for_length(length))
    assert horizon.item() == pytest.approx(0.99)
    assert gamma_for_length(length, u=0.5) == pytest.approx(0.5 ** (1 / length))


def test_gamma_from_lengths():
    data = torch.randperm(1000) + 1  # 1 .. 1000: 99th percentile 990.01
    assert gamma_from_lengths(data) == pytest.approx(0.01 ** (1 / 990.01), rel=1e-12)
    assert gamma_from_lengths(data.tolist()) == gamma_from_lengths(data)
    assert gamma_from_lengths([7]) == gamma_for_length(7)
    assert gamma_from_lengths(data, percentile=100) == gamma_for_length(1000)
    assert gamma_from_lengths(data, percentile=50, u=0.9) == gamma_for_length(500.5, u=0.9)


def test_resolution_limit():
    limit = {
        (gamma, dtype): resolution_limit(gamma=gamma, dtype=dtype, from_logit=False)
        for gamma in (0.997, 0.999)
        for dtype in (torch.bfloat16, torch.float32)
    }
    assert limit[0.999, torch.bfloat16] == pytest.approx(5542, abs=1)
    assert limit[0.997, torch.bfloat16] == pytest.approx(1846, abs=1)
    assert limit[0.999, torch.float32] == pytest.approx(16_627, abs=1)
    assert limit[0.997, torch.float32] == pytest.approx(5537, abs=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_resolution_limit_is_where_values_end(dtype):
    gamma = 0.997
    end = resolution_limit(gamma=gamma, dtype=dtype, from_logit=False)
    last = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    if dtype != torch.float32:  # nextafter is not defined for half types
        last = torch.tensor(1 - torch.finfo(dtype).eps / 2)
        assert last.to(dtype).float() == last
    assert u_to_length(last.double(), gamma=gamma).item() == pytest.approx(end, rel=1e-6)
    beyond = length_to_u(torch.tensor(end * 1.2), gamma=gamma).to(dtype)
    assert u_to_length(beyond, gamma=gamma) == math.inf
    # A logit of the same dtype still tells it apart.
    logit = length_to_logit(torch.tensor(end * 1.2), gamma=gamma).to(dtype)
    assert logit_to_length(logit, gamma=gamma).item() == pytest.approx(end * 1.2, rel=0.01)
    assert resolution_limit(gamma=gamma, dtype=dtype, from_logit=True) > 1e7


@pytest.mark.parametrize(
    ("dtype", "k"), [(torch.bfloat16, 128), (torch.float16, 1024), (torch.float32, 2**23)]
)
def test_logit_error_floor(dtype, k):
    logit = torch.tensor([-60.0, -10.0, 1.0, 1000.0], dtype=torch.float64)
    floor = logit_error_floor(logit, dtype=dtype) * k
    expected = 0.731058578630005 / 1.313261687518223  # sigmoid(1) / softplus(1)
    assert_close(floor, torch.tensor([60.0, 10.0, expected, 1.0]).double(), rtol=3e-5, atol=0.0)


def test_logit_error_floor_bounds_real_rounding():
    gamma = 0.999
    logit = torch.linspace(-8.0, 60.0, 4001, dtype=torch.float64)
    exact = logit_to_length(logit, gamma=gamma)
    error = (logit_to_length(logit.bfloat16(), gamma=gamma) - exact).abs() / exact
    # Rounding moves a logit by at most half a unit of |z| / 128; the derivative is first order.
    assert (error <= logit_error_floor(logit, dtype=torch.bfloat16) * 0.6).all()
    assert error.max() > 0.01


@pytest.mark.parametrize("gamma", [0, 1, 0.0, 1.0, 1.2, -0.1, math.nan, math.inf, "0.997", None])
def test_bad_gamma(gamma):
    with pytest.raises(ValueError, match=r"gamma must be in \(0, 1\), got .*Use gamma_for_length"):
        check_gamma(gamma)
    for convert in (length_to_value, value_to_length, length_to_logit, logit_to_length):
        with pytest.raises(ValueError, match="gamma must be in"):
            convert(torch.zeros(2), gamma=gamma)
    with pytest.raises(ValueError, match="gamma must be in"):
        resolution_limit(gamma=gamma, dtype=torch.float32, from_logit=True)


def test_gamma_messages_say_why():
    with pytest.raises(ValueError, match="at gamma = 1 every length has value 0"):
        check_gamma(1.0)
    with pytest.raises(ValueError, match="at gamma = 0 every length has value -1"):
        check_gamma(0)
    assert check_gamma(0.5) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: length_to_value(-1, gamma=0.9), r"length must be in \[0, inf\], got -1"),
        (lambda: length_to_value(math.nan, gamma=0.9), "length must be in .*got nan"),
        (lambda: value_to_length(0.1, gamma=0.9), r"value must be in \[-1, 0\], got 0.1"),
        (lambda: value_to_length(-1.5, gamma=0.9), r"value must be in \[-1, 0\], got -1.5"),
        (lambda: u_to_length(-0.5, gamma=0.9), r"u must be in \[0, 1\], got -0.5"),
        (lambda: value_to_logit(0.5), "value must be in"),
        (lambda: logit_to_value(torch.zeros(1, dtype=torch.complex64)), "logit must be real"),
        (lambda: gamma_for_length(0), "length_p99 must be positive and finite, got 0"),
        (lambda: gamma_for_length(math.inf), "length_p99 must be positive"),
        (lambda: gamma_for_length(100, u=1.0), r"u must be in \(0, 1\), got 1.0"),
        (lambda: gamma_for_length(1e20), "gamma must be in"),
        (lambda: gamma_from_lengths([]), "empty data set"),
        (lambda: gamma_from_lengths([3, 0]), "lengths must be positive, got 0"),
        (lambda: gamma_from_lengths([3.0, math.nan]), "lengths must be positive, got nan"),
        (lambda: gamma_from_lengths([3], percentile=0), r"percentile must be in \(0, 100\]"),
        (
            lambda: resolution_limit(gamma=0.9, dtype=torch.int32, from_logit=True),
            "dtype must be floating point, got torch.int32",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_tensors_out_of_range_are_visible():
    # No host sync on tensors: illegal contents come out as negative lengths or NaN, as documented.
    bad = value_to_length(torch.tensor([0.1, -1.1]), gamma=0.9)
    assert bad[0] < 0 and bad[1].isnan()
