"""Length tokens: scores by hand, counts against a plain loop, pages that hold any text."""

import io
import json
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lenvm_rl.core import length_to_u, value_to_logit
from lenvm_rl.evals.length_tokens.draw import cloud_sizes, draw, view
from lenvm_rl.evals.length_tokens.evaluate import Settings, evaluate, run
from lenvm_rl.evals.result import Result
from lenvm_rl.rollouts import Rollout

GAMMA = 0.9
EOS = 0
PIECES = ["<eos>", "▁so", "▁wait", "▁con", "clude", "▁<b>", "?"]
SO, WAIT, CON, CLUDE, BOLD, ASK = range(1, 7)


def make_tokenizer():
    raw = Tokenizer(models.WordLevel({p: i for i, p in enumerate(PIECES)}, unk_token="▁so"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")


class LastToken(torch.nn.Module):
    """Remaining length as the last token says: 20 after `wait`, 2 after `clude`, else 8."""

    left = {WAIT: 20.0, CLUDE: 2.0}

    def __init__(self):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))
        self.config = SimpleNamespace(
            processor=None,
            require_gamma=lambda: GAMMA,
            target="return",
            length_scale=None,
            segment=None,
            policy=None,
            text_config=SimpleNamespace(max_position_embeddings=1000, vocab_size=1000),
            max_position_embeddings=1000,
            vocab_size=1000,
        )

    def length_logits(self, input_ids):
        left = torch.full(input_ids.shape, 8.0, dtype=torch.float64)
        for token, length in self.left.items():
            left[input_ids == token] = length
        return value_to_logit(-length_to_u(left, gamma=GAMMA))


def u(length):
    return 1.0 - GAMMA**length


def row(ids, *, name="p", sample=0, truncated=False):
    return Rollout(
        prompt_id=name,
        sample_id=sample,
        prompt_ids=[SO, ASK],
        response_ids=ids,
        finish_reason="length" if truncated else "stop",
    )


@pytest.fixture(scope="module")
def rows():
    return [
        row([SO, WAIT, BOLD, CON, CLUDE, EOS]),
        row([WAIT, CON, CLUDE, EOS], sample=1),
        row([SO, WAIT], sample=2, truncated=True),
    ]


@pytest.fixture(scope="module")
def report(rows):
    settings = Settings(threshold=0.05, min_count=2, min_prompts=1, top=5)
    return evaluate(LastToken(), make_tokenizer(), rows, settings)


def entry(report, text, table="words"):
    return next(item for item in report.tables[table] if item["text"] == text)


def test_scores_by_hand(report):
    wait = entry(report, "wait")
    after_8 = GAMMA * u(20) - u(8) + 0.1  # from 8 tokens left to 20
    assert wait["count"] == 2 == wait["positive"]  # the third is the last before the truncation
    assert wait["mean"] == pytest.approx(after_8) and wait["sd"] == pytest.approx(0, abs=1e-7)
    # A word of two tokens: from 8 left (after <b>) or 20 (after wait) to 2, two tokens later.
    scores = [GAMMA**2 * u(2) - u(start) + 1 - GAMMA**2 for start in (8, 20)]
    conclude = entry(report, "conclude")
    assert conclude["count"] == 2 == conclude["negative"]
    assert conclude["mean"] == pytest.approx(sum(scores) / 2)
    assert conclude["least"] == pytest.approx(min(scores))
    # After EOS nothing remains, whatever was predicted.
    assert entry(report, "<eos>")["mean"] == pytest.approx(0.1 - u(2))
    assert entry(report, "<eos>")["count"] == 2


def test_tokens_equal_a_plain_loop(report, rows):
    model, sums = LastToken(), {}
    for r in rows:
        ids = [*r.prompt_ids, *r.response_ids]
        for t in range(len(r.prompt_ids), len(ids)):
            last = t == len(ids) - 1
            if last and r.truncated:
                continue
            before = u(model.left.get(ids[t - 1], 8.0))
            after = 0.0 if last else u(model.left.get(ids[t], 8.0))
            sums.setdefault(ids[t], []).append(GAMMA * after - before + (1 - GAMMA))
    table = {item["token_id"]: item for item in report.tables["tokens"]}
    assert set(table) == set(sums)
    for token, scores in sums.items():
        assert table[token]["count"] == len(scores)
        assert table[token]["mean"] == pytest.approx(sum(scores) / len(scores))
        assert table[token]["positive"] == sum(s > 0.05 for s in scores)
        assert table[token]["negative"] == sum(s < -0.05 for s in scores)
    assert report.figures["tokens"] == 11 == sum(map(len, sums.values()))


def test_a_word_scores_the_discounted_sum_of_its_tokens(report):
    con, clude = (entry(report, text, "tokens") for text in ("␣con", "clude"))
    assert entry(report, "conclude")["mean"] == pytest.approx(con["mean"] + GAMMA * clude["mean"])


def test_rankings_and_contexts(report):
    top = report.figures["top"]
    assert top["positive_by_mean"] == ["wait"]
    assert top["negative_by_mean"] == ["conclude"]  # the end itself is in the tables alone
    assert top["positive_by_count"][0] == "wait"
    examples = [c for c in report.tables["contexts"] if c["text"] == "wait"]
    assert {(c["before"], c["word"], c["after"]) for c in examples} == {
        (" so", " wait", " <b> conclude<eos>"),
        ("", " wait", " conclude<eos>"),
    }
    assert examples[0]["length_before"] == pytest.approx(8, abs=1e-3)
    assert examples[0]["length_after"] == pytest.approx(20, abs=1e-2)


def test_examples_are_a_sample_of_all_occurrences():
    rows = [row([WAIT, EOS], name=f"p{i:03}") for i in range(200)]
    report = evaluate(LastToken(), make_tokenizer(), rows)
    names = [c["prompt_id"] for c in report.tables["contexts"] if c["text"] == "wait"]
    assert len(names) == 4 == len(set(names))
    assert max(names) > "p020"  # not the first four


def test_a_word_of_few_prompts_is_not_ranked_by_mean():
    rows = [row([WAIT, EOS], name=f"p{i % 3}", sample=i) for i in range(30)]
    for needed, expected in ((3, ["wait"]), (4, [])):
        settings = Settings(min_count=1, min_prompts=needed)
        report = evaluate(LastToken(), make_tokenizer(), rows, settings)
        assert report.figures["top"]["positive_by_mean"] == expected
        assert entry(report, "wait")["prompts"] == 3


def test_clouds_take_words_over_the_threshold_in_mean_and_count(report):
    sizes = cloud_sizes(report.tables["words"], "positive", 0.05, {"<eos>"})
    assert sizes == {"wait": 2.0}
    negative = cloud_sizes(report.tables["words"], "negative", 0.05, {"<eos>"})
    assert negative["conclude"] == 2.0 and "<eos>" not in negative


def test_everything_is_saved_and_text_stays_text(report, tmp_path):
    names = {path.name for path in [*report.save(tmp_path), *draw(report, tmp_path)]}
    assert names == {
        "length_tokens.json",
        "length_tokens.jsonl",
        *(f"length_tokens_{table}.csv" for table in ("top", "words", "tokens", "contexts")),
        "length_tokens.html",
        "length_tokens_positive.png",
        "length_tokens_negative.png",
    }
    page = (tmp_path / "length_tokens.html").read_text()
    assert "&lt;b&gt;" in page and "<b>" not in page and "<script" not in page
    saved = json.loads((tmp_path / "length_tokens.json").read_text())
    assert saved["top"]["positive_by_mean"] == ["wait"]
    assert Result.load(tmp_path / "length_tokens.json").tables["words"] == report.tables["words"]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(view(report))
    assert "conclude" in console.export_text()


def test_markup_in_a_word_is_printed_as_it_is():
    """Rich would take [red] for a colour."""

    class Red(LastToken):
        left = {WAIT: 20.0}

    tokenizer = make_tokenizer()
    rows = [row([WAIT, EOS], sample=i) for i in range(3)]
    report = evaluate(Red(), tokenizer, rows, Settings(min_count=1, min_prompts=1))
    report.tables["top"][0]["text"] = "[red]"
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(view(report))
    assert "[red]" in console.export_text()


def test_wrong_settings_and_no_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\), got 50"):
        Settings(threshold=50.0)
    with pytest.raises(ValueError, match="min_count and top"):
        Settings(min_count=0)
    with pytest.raises(ValueError, match="min_prompts must be in 0..64, got 65"):
        Settings(min_prompts=65)
    with pytest.raises(ValueError, match="no completion to analyse"):
        evaluate(LastToken(), make_tokenizer(), [])
    with pytest.raises(ValueError, match="config.json"):
        run(tmp_path, tmp_path, tmp_path / "out")
