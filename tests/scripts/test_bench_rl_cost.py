"""The cost of a length critic: reading a log, the ratio, the estimate's arithmetic."""

import pytest

from scripts.bench import rl_cost as bench
from scripts.bench.harness import main

LINE = "(Task) step:{n} - timing_s/adv:{adv} - timing_s/verl_adv:{verl} - timing_s/step:{step} - "
LOG = "\n".join(
    LINE.format(n=n, adv=adv, verl=verl, step=step)
    for n, adv, verl, step in [(1, 9, 1, 90), (2, 1.5, 0.5, 11), (3, 2.5, 0.5, 12)]
)


def test_timings_leave_out_the_first_step():
    assert bench.steps_of(LOG, "step") == [11.0, 12.0]
    assert bench.length_terms(LOG) == [1.0, 2.0]


def test_the_estimate_for_large_models():
    got = bench.estimate(policy=7.6e9, lenvm=1.5e9)
    # 2 * 1.5 / 76 of the half that is not sampling, and 10 * 1.5 / 76 with a refresh.
    assert got["ratio_frozen"] == pytest.approx(1 + 0.5 * 3 / 76)
    assert got["ratio_refreshed"] == pytest.approx(1 + 0.5 * 15 / 76)


def test_one_step_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["rl_cost", "--steps", "1"])
    assert "at least 2" in capsys.readouterr().err
