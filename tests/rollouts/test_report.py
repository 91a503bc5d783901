"""The streamed length report equals numpy on the lengths themselves."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lenvm_rl.core import gamma_for_length
from lenvm_rl.rollouts import Rollout, RolloutWriter, files, length_report, report_table
from lenvm_rl.rollouts import report as report_module
from lenvm_rl.rollouts.columns import DistinctDigests
from lenvm_rl.rollouts.lengths import LengthHistogram
from tests.rollouts.rows import SHA, make_rows


def row_of_length(length, prompt="p", sample=0, reason="stop", source="math"):
    return Rollout(
        prompt_id=prompt,
        sample_id=sample,
        prompt_ids=[1],
        response_ids=[2] * length,
        finish_reason=reason,
        data_source=source,
    )


@given(lengths=st.lists(st.integers(0, 3000), min_size=1, max_size=80), q=st.floats(0, 100))
def test_histogram_equals_numpy(lengths, q):
    histogram = LengthHistogram()
    for part in np.array_split(np.asarray(lengths), 3):
        histogram.add(part)
    assert histogram.rows == len(lengths) and histogram.tokens == sum(lengths)
    assert (histogram.min, histogram.max) == (min(lengths), max(lengths))
    assert histogram.mean == pytest.approx(np.mean(lengths))
    assert histogram.std == pytest.approx(np.std(lengths), abs=1e-9)
    assert histogram.percentile(q) == pytest.approx(np.percentile(lengths, q), abs=1e-6)


@given(st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=30), max_size=10))
def test_distinct_digests_equal_a_set(batches):
    distinct = DistinctDigests()
    distinct._LEAST = 20
    for batch in batches:
        distinct.add(np.asarray(batch, dtype=np.uint64))
    want = sorted({digest for batch in batches for digest in batch})
    assert distinct.values().tolist() == want and len(distinct) == len(want)


def test_report_equals_numpy(write, monkeypatch):
    # Small groups, so that prompts and sources reach over the borders of batches.
    monkeypatch.setattr(files, "ROW_GROUP_TOKENS", 300)
    monkeypatch.setattr(files, "ROW_GROUP_ROWS", 13)
    rows = make_rows(60, 8, max_length=200, source=lambda p: ("math", "code", "chat")[p % 3])
    report = length_report(write(rows, rows_per_shard=100))
    lengths = np.array([row.length for row in rows])
    total = report.overall
    assert (total.rows, total.tokens, report.prompts) == (480, lengths.sum(), 60)
    assert total.mean == pytest.approx(lengths.mean())
    assert total.std == pytest.approx(lengths.std())
    assert (total.min, total.max) == (lengths.min(), lengths.max())
    for q in (1, 5, 25, 50, 75, 90, 95, 99, 99.9):
        assert total.percentiles[f"p{q:g}"] == pytest.approx(np.percentile(lengths, q))
    truncated = np.array([row.truncated for row in rows])
    assert total.truncated_rows == truncated.sum() and total.share_truncated == pytest.approx(
        truncated.mean()
    )
    assert report.suggested_gamma == gamma_for_length(np.percentile(lengths, 99))
    sources = np.array([row.data_source for row in rows])
    assert {entry.source for entry in report.sources} == {"math", "code", "chat"}
    for entry in report.sources:
        mine = sources == entry.source
        assert entry.rows == mine.sum() and entry.truncated_rows == truncated[mine].sum()
        assert entry.mean == pytest.approx(lengths[mine].mean())
        assert entry.percentiles["p90"] == pytest.approx(np.percentile(lengths[mine], 90))
    per_prompt = lengths.reshape(60, 8)
    std, mean = per_prompt.std(axis=1, ddof=1), per_prompt.mean(axis=1)
    within = report.within_prompt
    assert (within.prompts, within.rows) == (60, 480)
    assert within.std == pytest.approx((std**2).mean() ** 0.5)
    squared_mean = (mean**2 - std**2 / 8).mean()
    assert within.relative_std == pytest.approx((std**2).mean() ** 0.5 / squared_mean**0.5)


def test_gamma_for_another_percentile(write):
    path = write([row_of_length(n, prompt=f"p{n}") for n in range(1, 102)], eos_ids=None)
    report = length_report(path, percentile=50, u=0.9)
    # 1 - gamma**51 = 0.9
    assert 1 - report.suggested_gamma**51 == pytest.approx(0.9)
    with pytest.raises(ValueError, match=r"percentile must be in \(0, 100\], got 0"):
        length_report(path, percentile=0)


@pytest.mark.parametrize(("truncated", "warned"), [(1, False), (2, True)])
def test_above_one_percent_cut_is_warned_of(write, truncated, warned):
    rows = [row_of_length(5, prompt=f"p{n}") for n in range(100 - truncated)]
    rows += [row_of_length(9, prompt=f"cut{n}", reason="length") for n in range(truncated)]
    warnings = length_report(write(rows, eos_ids=None)).warnings
    found = [w for w in warnings if f"{truncated}.0% of the completions were truncated" in w]
    assert bool(found) == warned
    assert not warned or "over-represents short responses" in found[0]


def spread_rows(*groups):
    return [
        row_of_length(n, f"p{p}", s) for p, part in enumerate(groups) for s, n in enumerate(part)
    ]


def test_the_spread_is_that_of_completions_side_by_side(write):
    report = length_report(write(spread_rows([3, 5], [10, 30]), eos_ids=None))
    assert (report.within_prompt.prompts, report.within_prompt.rows) == (2, 4)
    want = np.mean([np.var([3, 5], ddof=1), np.var([10, 30], ddof=1)]) ** 0.5
    assert report.within_prompt.std == pytest.approx(want)


@pytest.mark.parametrize("samples", [2, 50])
def test_the_spread_does_not_depend_on_the_number_of_samples(write, samples):
    rng = np.random.default_rng(0)
    groups = [rng.geometric(0.05, samples) for _ in range(12_000 // samples)]
    within = length_report(write(spread_rows(*groups), eos_ids=None)).within_prompt
    assert within.relative_std == pytest.approx(0.95**0.5, rel=0.06)  # a geometric law's


def test_a_spread_of_completions_apart_is_not_given(write):
    rows = [*spread_rows([3, 5], [10, 30], [8], [4]), row_of_length(7, "p0", 2)]
    report = length_report(write(rows, eos_ids=None))
    assert report.prompts == 4 and report.within_prompt is None
    assert any(
        "only 57% of the completions have one of the same prompt" in w for w in report.warnings
    )


def test_single_completions_have_no_spread(write):
    report = length_report(write([row_of_length(n, f"p{n}") for n in (1, 2)], eos_ids=None))
    assert report.within_prompt is None and report.warnings == []


def test_many_sources_share_one_entry(write, monkeypatch):
    monkeypatch.setattr(report_module, "_MOST_SOURCES", 3)
    rows = [row_of_length(n, f"p{n}", source=f"s{n}") for n in range(1, 11)]
    report = length_report(write(rows, eos_ids=None))
    assert [entry.source for entry in report.sources] == ["(other sources)", "s1", "s2", "s3"]
    assert report.sources[0].rows == 7 and sum(entry.rows for entry in report.sources) == 10


def test_saved_files(write, tmp_path):
    rows = make_rows(20, 4, max_length=50, source=lambda p: ("math", "code")[p % 2])
    report = length_report(write(rows))
    paths = report.save(tmp_path / "out")
    assert [p.name for p in paths] == [
        "lengths.json",
        "lengths.csv",
        "length_histogram.csv",
        "lengths.png",
    ]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in paths)
    saved = json.loads(paths[0].read_text())
    assert saved.pop("headline")[0] == ["rows", "completions", ",d"]
    assert saved == json.loads(json.dumps(report.to_dict()))
    table = list(csv.DictReader(paths[1].open()))
    assert [line["source"] for line in table] == ["all", *(s.source for s in report.sources)]
    assert float(table[0]["p99"]) == report.overall.percentiles["p99"]
    histogram = list(csv.DictReader(paths[2].open()))
    counted = sum(
        int(line["length"]) * (int(line["ended"]) + int(line["truncated"])) for line in histogram
    )
    assert counted == report.overall.tokens
    assert sum(int(line["truncated"]) for line in histogram) == report.overall.truncated_rows
    assert paths[3].read_bytes().startswith(b"\x89PNG") and paths[3].stat().st_size > 10_000


def test_table_fits_one_screen(write):
    rows = make_rows(100, 3, max_length=50, source=lambda p: f"source-{p % 20}")
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    report = length_report(write(rows))
    console.print(report_table(report))
    text = console.export_text()
    assert len(text.splitlines()) <= 30
    assert "…" not in text, "a figure is cut"
    assert f"{report.overall.share_truncated:.2%}" in text
    assert f"suggested gamma: {report.suggested_gamma:.6g}" in text
    assert "8 smaller sources" in text
    assert "warning:" in text and "truncated by the token limit" in text


def test_another_tokenizer_is_refused(write):
    with pytest.raises(ValueError, match="tokenizer other was asked for"):
        length_report(write(make_rows(2, 2)), tokenizer_sha="other")


def test_unfinished_shards_are_warned_of(write):
    path = write(make_rows(2, 2))
    (path / "part-00001.parquet.1.tmp").touch()
    with pytest.warns(UserWarning, match="ignored unfinished"):
        report = length_report(path)
    assert any("1 unfinished *.tmp shards" in w for w in report.warnings)


def test_very_long_responses(tmp_path):
    with RolloutWriter(tmp_path, tokenizer_sha=SHA) as writer:
        writer.append([row_of_length(100_000), row_of_length(1, sample=1)])
    report = length_report(tmp_path)
    assert (report.overall.max, report.overall.percentiles["p50"]) == (100_000, 50_000.5)
