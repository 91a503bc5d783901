"""Commands that put several functions of the library together.

Each is a plain function: its signature gives the options, its docstring the help (`options`), what
it returns is printed (`show`). Heavy imports stand inside, so that `--help` is quick.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from lenvm_rl.cli.table import Answer


def demo(
    out: Path = Path("runs/demo"), *, seed: int = 0, setup_seconds: float | None = None
) -> Answer:
    """Run the quick start on a CPU with the demo policy: sample, pretrain, verify, report.

    Example: `lenvm demo --out runs/demo`

    Args:
        out: directory to write to.
        seed: seed of everything random.
        setup_seconds: time that set-up took, for the summary.
    """
    from rich.console import Console

    from lenvm_rl.demo.launch import TrainingFailed
    from lenvm_rl.demo.run import run_demo

    try:
        summary = run_demo(out, seed=seed, setup_s=setup_seconds, console=Console())
    except TrainingFailed as error:
        return Answer({}, complaint=str(error))
    (out / "summary.json").write_text(json.dumps(summary, allow_nan=False) + "\n")
    return Answer(summary)


def prompts(
    name: str | None = None,
    out: Path | None = None,
    *,
    list: bool = False,
    source: str = "hub",
    split: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
    heldout_fraction: float = 0.0,
    exclude: list[Path] | None = None,
    duplicates: Literal["auto", "keep", "drop"] = "auto",
    column: str | None = None,
    truth: str | None = None,
    template: str = "plain",
    data_source: str | None = None,
) -> Answer:
    """Write the prompts of a set as a file that `lenvm` and verl read.

    Equal prompts are written once, and a prompt is on one side of the held-out split whatever else
    is in the file.

    Example: `lenvm prompts gsm8k --split train --heldout-fraction 0.05 --out runs/gsm8k.parquet`

    Args:
        name: name of a set, e.g. gsm8k; `column` for any data set.
        out: .jsonl or .parquet file to write.
        list: show the known sets.
        source: folder, file, owner/name, or `hub`: the set's own place there.
        split: split of the data set.
        limit: maximum number of prompts per file.
        seed: seed of a shuffle (default: in order).
        heldout_fraction: share of the prompts for a second file, *.heldout.*.
        exclude: prompt file whose prompts are left out; repeatable.
        duplicates: what becomes of equal prompts: auto drops them except in lifebench.
        column: with `column`: column of texts or messages.
        truth: with `column`: column of the ground truth.
        template: with `column`: math, instructions, ..., or words with {prompt}.
        data_source: with `column`: value of data_source, e.g. math/mine.
    """
    from lenvm_rl.cli.graders import check_truths
    from lenvm_rl.prompts.prompt import read_prompts, write_prompts
    from lenvm_rl.prompts.sets import load_prompt_set

    if list:
        return _known_sets()
    if name is None or out is None:
        raise ValueError("name a set and --out FILE, or show the sets with --list.")
    if out.suffix not in (".jsonl", ".parquet"):  # before anything is loaded
        raise ValueError(f"--out {out}: prompts are written as .jsonl or .parquet.")
    loaded = load_prompt_set(
        _chosen_set(name, column, truth=truth, template=template, data_source=data_source),
        source=source,
        split=split,
        limit=limit,
        seed=seed,
        heldout=heldout_fraction,
        exclude=[prompt for path in exclude or () for prompt in read_prompts(path)],
        keep_duplicates={"auto": None, "keep": True, "drop": False}[duplicates],
    )
    check_truths([*loaded.prompts, *loaded.heldout])
    if heldout_fraction and not (loaded.prompts and loaded.heldout):
        raise ValueError(
            f"--heldout-fraction {heldout_fraction} leaves one side empty: there are "
            f"{len(loaded.prompts)} and {len(loaded.heldout)} prompts."
        )
    write_prompts(loaded.prompts, out)
    figures: dict[str, Any] = {"set": name, "out": str(out), **loaded.counts()}
    held = f" and {figures['heldout']} held out" if figures["heldout"] else ""
    if loaded.heldout:
        figures["heldout_out"] = str(out.with_suffix(f".heldout{out.suffix}"))
        write_prompts(loaded.heldout, Path(figures["heldout_out"]))
    dropped = ", ".join(f"{figures[key]} {key}" for key in ("filtered", "duplicates", "excluded"))
    counted = f"{figures['rows']} rows, {dropped}: {figures['prompts']} prompts"
    return Answer(figures, f"{counted}{held} in {out}")


def _chosen_set(name: str, column: str | None, **column_settings: str | None) -> Any:
    """A set's name, or the set of a column."""
    from lenvm_rl.prompts.sets import column_set

    if name != "column":
        stray = [key for key, value in column_settings.items() if value not in (None, "plain")]
        if column is not None or stray:
            given = " and ".join(f"--{key.replace('_', '-')}" for key in stray or ["column"])
            raise ValueError(f"{given} is for `lenvm prompts column`; {name} has its own.")
        return name
    if column is None:
        raise ValueError("`lenvm prompts column` needs --column NAME, the column with the prompts.")
    given = {key: value for key, value in column_settings.items() if value is not None}
    return column_set(column, **given)  # pyright: ignore[reportArgumentType]


def _known_sets() -> Answer:
    """The known sets: a line each, and all that is known of them as JSON."""
    from rich.table import Table

    from lenvm_rl.prompts.sets import PROMPT_SETS

    table = Table()
    table.add_column("set", no_wrap=True)
    table.add_column("what")
    table.add_column("hub, split", overflow="fold")
    table.add_column("template", no_wrap=True)
    for one in PROMPT_SETS.values():
        table.add_row(one.name, one.about, f"{one.hub}, {one.split}", one.template)
    table.add_row("column", "a column of any data set", "--source, --split", "--template")
    known = ("name", "about", "hub", "config", "split", "columns", "fields", "truth", "template")
    sets = [{key: getattr(one, key) for key in (*known, "licence")} for one in PROMPT_SETS.values()]
    return Answer({"sets": sets}, table)


def report(rollouts: Path, *, out: Path | None = None, max_tokens: int | None = None) -> Answer:
    """Show the lengths of a rollout file: percentiles, share truncated, the gamma they suggest.

    With --max-tokens also what share of such answers an evaluation of that limit would cut, which
    it counts as wrong without a word. Before anything is sampled, a LenVM of the target
    distribution says it: `lenvm predict --prompts PROMPTS --max-tokens N`. All results of
    evaluations on one page: `lenvm eval report`.

    Example: `lenvm report runs/rollouts --max-tokens 512 --out runs/rollouts-report`

    Args:
        rollouts: rollout file: .parquet or directory.
        out: directory for JSON, CSV and a histogram.
        max_tokens: a limit on response tokens that is thought of.
    """
    from rich.console import Group

    from lenvm_rl.rollouts import RolloutReader, length_report, report_table
    from lenvm_rl.rollouts.caps import cut_share

    lengths = length_report(rollouts, progress=True)
    if out is not None:
        lengths.save(out)
    if max_tokens is None:
        return Answer(lengths.to_dict(), report_table(lengths))
    cut = cut_share(RolloutReader(rollouts).iter_rows(), max_tokens)
    figures = lengths.to_dict() | {"cut": cut.to_dict()}
    return Answer(figures, Group(report_table(lengths), cut.sentence()))


def split(
    rollouts: Path, *, train: Path, heldout: Path, heldout_fraction: float = 0.05, seed: int = 0
) -> Answer:
    """Split a rollout file by unique prompt, so that no prompt is on both sides.

    Example: `lenvm split runs/rollouts --train runs/train --heldout runs/heldout`

    Args:
        rollouts: rollout file: .parquet or directory.
        train: directory to write the training side to.
        heldout: directory to write the held-out side to.
        heldout_fraction: share of prompts held out.
        seed: seed of the choice.
    """
    from lenvm_rl.rollouts import split_by_prompt

    counts = split_by_prompt(rollouts, train, heldout, heldout_fraction=heldout_fraction, seed=seed)
    return Answer(counts.to_dict())


def grade(rollouts: Path, *, out: Path, tokenizer: str, grader: str = "auto") -> Answer:
    """Keep the completions that a grader calls correct, for a LenVM of correct answers.

    What it is for: `lenvm.applies_to=correct` in training, see recipes/grpo_length.

    Example: `lenvm grade runs/train --tokenizer Qwen/Qwen2.5-7B --out runs/train-correct`

    Args:
        rollouts: rollout file: .parquet or directory.
        out: directory to write to.
    """
    from lenvm_rl.cli.graders import by_source, row_judge
    from lenvm_rl.rollouts import keep_correct

    tokens = _tokenizer_of(rollouts, tokenizer)
    kept = keep_correct(
        rollouts,
        out,
        decode=lambda ids: tokens.decode(ids, skip_special_tokens=True),
        judge=row_judge(grader),
        grader_of=by_source if grader == "auto" else lambda source: grader,
        progress=True,
    )
    return Answer(kept.to_dict())


def segment(
    rollouts: Path,
    *,
    out: Path,
    tokenizer: str,
    keep: Literal["thinking", "answer"] = "thinking",
    start: str = "<think>",
    end: str = "</think>",
) -> Answer:
    """Keep the thinking, or the answer, of each response, for a LenVM that counts it.

    What it is for: budgets for thinking alone (`lenvm_segment=thinking`), see recipes/guidance.

    Example: `lenvm segment runs/train --tokenizer Qwen/Qwen3-8B --out runs/train-think`

    Args:
        rollouts: rollout file: .parquet or directory.
        out: directory to write to.
        keep: thinking ends with the first token of the closing tag; an answer has it in its prompt.
        start: tag that opens the thinking, in the response or at the end of the prompt.
        end: tag that closes it.
    """
    from lenvm_rl.rollouts import ThinkTags, keep_segment

    tokens = _tokenizer_of(rollouts, tokenizer)
    tags = ThinkTags.of(start, end, tokens)
    return Answer(keep_segment(rollouts, out, segment=keep, tags=tags, progress=True).to_dict())


def _tokenizer_of(rollouts: Path, name: str) -> Any:
    """The tokenizer that --tokenizer names, which must be the one that made the file's ids."""
    from lenvm_rl.model import check_tokenizer_sha, load_tokenizer, tokenizer_sha
    from lenvm_rl.rollouts import RolloutReader

    tokens = load_tokenizer(name)
    check_tokenizer_sha(
        RolloutReader(rollouts).metadata["tokenizer_sha"],
        tokenizer_sha(tokens),
        expected_of=str(rollouts),
        got_of=f"--tokenizer {name}",
    )
    return tokens


def convert(
    kind: Literal["text", "reference", "verl"],
    source: Path,
    *,
    out: Path,
    tokenizer: str,
    raw: bool = False,
    max_tokens: int | None = None,
    assume_finished: bool = False,
    end_token: list[str] | None = None,
    think_tags: str | None = None,
    chat_template_args: dict[str, Any] | None = None,
    skip_bad: bool = False,
) -> Answer:
    """Turn completions that are there already into a rollout file.

    KIND `text` reads prompt and completions, `reference` the paper's conversations / meta_info,
    `verl` the dumps of trainer.rollout_data_dir, which do not say how a response ended: give
    --max-tokens.

    Example: `lenvm convert text answers.jsonl --tokenizer Qwen/Qwen2.5-7B --out runs/rollouts`

    Args:
        kind: text, reference or verl.
        source: JSONL file or directory.
        out: directory to write to.
        raw: with text: prompts are raw text, not a user's message.
        max_tokens: token limit of their generation (verl: data.max_response_length): tells which
            were truncated where the source has no finish reason.
        assume_finished: there was no token limit: completions all ended by themselves.
        skip_bad: continue after bad rows and list them; `text` keeps a completion whose end is
            unknown as truncated.
    """
    from lenvm_rl import rollouts
    from lenvm_rl.model import load_tokenizer, tokenizer_sha
    from lenvm_rl.model.policy import policy_configs
    from lenvm_rl.model.tokens import token_ids_of

    converters = {
        "text": rollouts.convert_text,
        "reference": rollouts.convert_reference,
        "verl": rollouts.convert_verl,
    }
    if max_tokens is not None and assume_finished:
        raise ValueError("--max-tokens and --assume-finished contradict each other: give one.")
    tokens = load_tokenizer(tokenizer, chat_template_args=chat_template_args)
    facts = policy_configs(tokenizer)
    codec = rollouts.TextCodec.from_tokenizer(
        tokens,
        tokenizer_sha=tokenizer_sha(tokens),
        end_ids=token_ids_of(tokens, end_token or ()),
        generation=facts.generation,
        config=facts.config,
        chat=not raw,
        reasoning=think_tags,
    )
    settings: dict[str, Any] = {
        "errors": "report" if skip_bad else "raise",
        "assume_finished": assume_finished,
        "progress": True,
    }
    if kind == "reference":
        settings["max_tokens"] = max_tokens
    else:
        settings["sampling"] = {"max_tokens": max_tokens}
    if kind == "text":
        settings["chat"] = not raw
    done = converters[kind](source, out, codec=codec, **settings)
    return Answer(done.to_dict(), done.summary())


def init(
    *,
    out: Path,
    policy: str | None = None,
    tokenizer: str | None = None,
    hidden_size: int = 256,
    layers: int | None = None,
    max_positions: int = 4096,
    architecture: str = "qwen2",
    gamma: float | None = None,
    head_target: str = "return",
    longest: int | None = None,
    head: str = "state",
    freeze_trunk: bool = False,
    text_only: bool = False,
    seed: int = 0,
) -> Answer:
    """Make an untrained LenVM: on the trunk of a causal LM, or with a fresh trunk.

    Example: `lenvm init --policy Qwen/Qwen2.5-1.5B-Instruct --out lenvm-init`

    Example: `lenvm init --tokenizer Qwen/Qwen2.5-7B --hidden-size 512 --layers 8 --out lenvm-init`

    Example: `lenvm init --policy Qwen/Qwen2.5-0.5B
    --tokenizer deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B --out lenvm-init`

    Example: `lenvm init --policy demo --head candidate --freeze-trunk --out q-head-init`

    Example: `lenvm init --policy HuggingFaceTB/SmolLM2-135M-Instruct --layers 10 --out lenvm-init`

    On a vision-language policy (Qwen2.5-VL, Qwen3-VL, LLaVA) the LenVM keeps tower and projector,
    and sees the pictures.

    Example: `lenvm init --policy Qwen/Qwen2.5-VL-3B-Instruct --out lenvm-init`

    Args:
        out: directory to write to.
        policy: causal or vision-language model whose trunk to start from, or `demo`.
        tokenizer: vocabulary: of a fresh trunk, or of a kin of the policy.
        hidden_size: fresh trunk: width.
        layers: blocks: the policy's first ones (default: all), or of a fresh trunk (default: 4).
        max_positions: fresh trunk: longest sequence.
        architecture: fresh trunk: model type.
        gamma: per-token discount in (0, 1); training can choose it.
        head_target: quantity that the head predicts: return (the paper's), distribution (of the
            length: quantiles, and every gamma), length, normalized_length, log_length.
        longest: with distribution: tokens of the longest response; bins are spaced up to it.
        head: kind of head: state (the paper's), or candidate: values tokens before they run.
        freeze_trunk: train the head alone, on the policy's own hidden states.
        text_only: of a policy that sees pictures, read the text alone, on purpose.
        seed: seed of everything random.
    """
    import torch

    from lenvm_rl import model as models

    if policy is None and tokenizer is None:
        raise ValueError(
            "give --policy (start on its trunk) or --tokenizer (fresh trunk): got neither."
        )
    if freeze_trunk and (policy is None or tokenizer is not None):
        raise ValueError(
            "--freeze-trunk is for the policy's own trunk, with its own tokenizer: a fresh trunk, "
            "or tokens that mean something else to it, must be learnt. Leave out --tokenizer."
        )
    if freeze_trunk and layers is not None:
        raise ValueError(
            f"--freeze-trunk reads the states behind the policy's last block, --layers {layers} "
            "keeps the first ones alone: leave out one of the two."
        )
    torch.manual_seed(seed)
    figures: dict[str, Any] = {}
    bins = _bins(head_target, longest)
    common: dict[str, Any] = {"gamma": gamma, "target": head_target, "bins": bins, "head": head}
    tokens = models.load_tokenizer(_found(tokenizer or policy or ""))
    _check_sight(policy, tokenizer, text_only)
    if policy is not None:
        model = models.LengthValueModel.from_policy(
            _found(policy),
            frozen_trunk=freeze_trunk,
            layers=layers,
            text_only=text_only,
            policy=models.describe_policy(tokenizer or policy, tokens),
            **common,
        )
        if tokenizer is not None:
            figures["tokens_learnt_anew"] = models.tokens_of_another_meaning(
                tokens, models.load_tokenizer(_found(policy)), model.config.vocab_size
            )
    else:
        model = models.from_scratch(
            tokens,
            hidden_size=hidden_size,
            num_layers=layers or 4,
            max_positions=max_positions,
            architecture=architecture,
            policy_name=tokenizer or "",
            ignores_pictures=text_only,
            **common,
        )
    works, warnings = _what_works(model)
    path = models.save_checkpoint(model, tokens, out)
    figures |= {"parameters": model.num_parameters(), "gamma": gamma, "works": works}
    return Answer({"lenvm": str(path), **figures}, warnings=warnings)


def _check_sight(policy: str | None, tokenizer: str | None, text_only: bool) -> None:
    """Refuse a trunk that reads text alone for a policy that sees pictures, and pictures that the
    policy and the trunk read by different settings."""
    from lenvm_rl.model.pictures import processor_settings, same_processor, sees_pictures
    from lenvm_rl.model.policy import policy_configs

    whose = tokenizer or policy or ""
    sees, trunk_sees = (
        name is not None and sees_pictures(policy_configs(_found(name)).config)
        for name in (whose, policy)
    )
    if text_only and not sees:
        raise ValueError(
            f"--text-only is for a policy that sees pictures, and {whose} reads text: leave it out."
        )
    if text_only or not (sees or trunk_sees):
        return
    if not (sees and trunk_sees):
        blind, sighted = (policy or "a fresh trunk", whose) if sees else (whose, policy)
        raise ValueError(
            f"{sighted} sees pictures and {blind} does not: values would be of other prompts. Take "
            "a vision-language trunk with the tokenizer of such a policy, or read the text "
            "alone on purpose (--text-only)."
        )
    own, wanted = (processor_settings(_found(name or "")) for name in (policy, whose))
    if differs := same_processor(own, wanted):
        raise ValueError(
            f"{policy} and {whose} read pictures by other settings of the image processor "
            f"({differs}): give the trunk the policy's preprocessor_config.json."
        )


def _bins(head_target: str, longest: int | None) -> list[int] | None:
    from lenvm_rl.core import DISTRIBUTION, LengthBins

    if (head_target == DISTRIBUTION) != (longest is not None):
        given = "no --longest" if longest is None else f"--longest {longest}"
        raise ValueError(
            f"--head-target {head_target} with {given}: a distribution needs the tokens of the "
            "longest response to space its bins, and other targets have none."
        )
    return None if longest is None else list(LengthBins.up_to(longest).edges)


def _found(name: str) -> str:
    from lenvm_rl.demo.prompts import resolve_policy

    return resolve_policy(name)


def _what_works(model: Any) -> tuple[dict[str, bool], tuple[str, ...]]:
    """What was tried on the trunk, and a sentence for each that fails."""
    from lenvm_rl.sampling.works import what_works

    found = what_works(model)
    said = (f"{what} will not work: {why}" for what, why in found.items() if why is not None)
    return {what: why is None for what, why in found.items()}, tuple(said)


def import_(
    checkpoint: str,
    *,
    out: Path,
    gamma: float | None = None,
    head_target: str = "return",
    policy: str | None = None,
) -> Answer:
    """Convert a published checkpoint of the paper's code; gamma is stored from then on.

    Example: `lenvm import namezz/lvm-a-qwen2.5-7b-instruct-b-qwen2.5-0.5b-instruct
    --out lenvm-qwen2.5-7b`

    Example: `lenvm import saves/lenvm-1.5b --gamma 0.997 --policy Qwen/Qwen2.5-7B-Instruct
    --out lenvm-1.5b`

    Args:
        checkpoint: directory or hub id: a trunk plus value_head.safetensors.
        out: directory to write to.
        gamma: discount that it was trained with (default: of published names, known).
        head_target: target that it was trained with.
        policy: policy whose lengths it predicts (default: of published names, known).
    """
    from lenvm_rl.model import find_model, import_published, load_tokenizer, save_checkpoint

    model = import_published(checkpoint, gamma=gamma, target=head_target, policy_name=policy)
    path = save_checkpoint(model, load_tokenizer(find_model(checkpoint)), out)
    works, warnings = _what_works(model)
    figures = {
        "lenvm": str(path),
        "parameters": model.num_parameters(),
        "gamma": model.config.gamma,
        "policy": (model.config.policy or {})["name"],
        "works": works,
    }
    return Answer(figures, warnings=warnings)


def predict(
    lenvm: Path,
    *,
    prompts: str | None = None,
    rollouts: Path | None = None,
    text: str | None = None,
    max_tokens: int | None = None,
    gamma: float | None = None,
    out: Path | None = None,
    limit: int | None = None,
    engine: Literal["transformers", "vllm"] = "transformers",
    dtype: str = "auto",
    chat_template_args: dict[str, Any] | None = None,
    profile: Path | None = None,
    band_floor: float = 0.5,
    grader: str = "auto",
    seed: int = 0,
) -> Answer:
    """Predict lengths: of responses to prompts, or of what is left along given responses.

    Prints a JSON object per row. Lengths are in tokens, EOS included. `length` is the inverse of
    the mean discounted length, and so lower than the mean length. A LenVM of the target
    distribution also gives mean, p10, p50, p90, p99 and p_truncated, the chance that --max-tokens
    cuts the response.

    Example: `lenvm predict --lenvm runs/demo/checkpoint/lenvm --text "12 + 7 - 3 = ?"`

    Args:
        rollouts: or a rollout file: predictions along its responses.
        text: or one user message.
        max_tokens: limit on the response's tokens, for p_truncated.
        gamma: of value and length: a distribution has every one (default: the checkpoint's).
        out: file for the rows (default: the screen).
        limit: maximum number of rows.
        engine: transformers, or vllm: serve the LenVM as a pooling model.
        dtype: with vllm: data type of the trunk; the head is float32.
        profile: file for a length profile of every prompt in place of the rows, as NeMo-RL's length
            penalties read it: of --prompts by prediction, of --rollouts by grading them.
        band_floor: share of the reward that the profile's band leaves to the longest answers.
        grader: with --profile and rollouts that have no reward: who judges them.
        seed: seed of the prompts drawn.
    """
    from itertools import islice

    from lenvm_rl.cli.profiles import profiles_of_predictions
    from lenvm_rl.demo.prompts import resolve_prompts
    from lenvm_rl.prompts.prompt import Prompt
    from lenvm_rl.sampling.predict import predict_prompts, predict_rollouts

    if sum(given is not None for given in (prompts, rollouts, text)) != 1:
        raise ValueError("give exactly one of --prompts, --rollouts and --text.")
    if profile is not None and rollouts is not None:
        return _profile_rollouts(lenvm, rollouts, profile, grader, band_floor)
    reader = None
    if engine == "vllm":
        from lenvm_rl.vllm.values import EngineReader

        reader = EngineReader(str(lenvm), dtype=dtype)
    read: dict[str, Any] = {"gamma": gamma, "max_tokens": max_tokens}
    if rollouts is not None:
        rows = predict_rollouts(lenvm, rollouts, outputs=reader, **read)
    else:
        message = [{"role": "user", "content": text}]
        asked = [Prompt(prompt_id="text", messages=message)]
        if prompts is not None:
            asked = resolve_prompts(prompts, seed=seed, limit=limit)
        rows = predict_prompts(
            lenvm, asked, outputs=reader, chat_template_args=chat_template_args, **read
        )
    errors: list[str] = []
    cut: list[float] = []
    if profile is not None:
        rows, out = profiles_of_predictions(rows, floor=band_floor), profile
    written = _write_lines(islice(rows, limit), out, errors, cut)
    warnings = ()
    if reader is not None and reader.seconds:
        speed = f"{reader.tokens} tokens in {reader.seconds:.2f} s"
        warnings = (f"{speed}: {reader.tokens / reader.seconds:.0f} tokens/s",)
    complaint = (
        f"{len(errors)} rows could not be predicted; the first: {errors[0]}" if errors else ""
    )
    figures = {"lenvm": str(lenvm), "rows": written, "failed": len(errors), **_mean_cut(cut)}
    return Answer(figures, complaint=complaint, warnings=warnings, silent=out is None)


def _mean_cut(cut: Sequence[float]) -> dict[str, float]:
    """Mean over prompts of the predicted chance of being truncated, with its interval."""
    from lenvm_rl.rollouts.caps import share_interval

    if len(cut) < 2:
        return {}  # the row says it
    low, high = share_interval(cut)
    return {"p_truncated": sum(cut) / len(cut), "p_truncated_low": low, "p_truncated_high": high}


def _profile_rollouts(
    lenvm: Path, rollouts: Path, profile: Path, grader: str, band_floor: float
) -> Answer:
    from lenvm_rl.cli.profiles import profiles_of_rollouts
    from lenvm_rl.model import load_tokenizer, tokenizer_sha
    from lenvm_rl.rollouts import RolloutReader

    tokenizer = load_tokenizer(lenvm)
    rows = RolloutReader(rollouts, tokenizer_sha=tokenizer_sha(tokenizer)).iter_rows()
    found = profiles_of_rollouts(
        rows,
        lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        grader,
        floor=band_floor,
    )
    written = _write_lines(found, profile, [], [])
    return Answer({"lenvm": str(lenvm), "rows": written, "failed": 0})


def _write_lines(
    rows: Iterable[dict[str, Any]], out: Path | None, errors: list[str], cut: list[float]
) -> int:
    """JSON lines to the screen, or to a file that appears whole or not at all; their number.

    Args:
        errors: gets the `error` of every row that has one.
        cut: gets the `p_truncated` of every prompt that has one.
    """
    from lenvm_rl.rollouts.atomic import replacing

    written = 0
    with ExitStack() as stack:
        file = sys.stdout
        if out is not None:
            file = stack.enter_context(stack.enter_context(replacing(out)).open("w"))
        for row in rows:
            written += 1
            file.write(json.dumps(row) + "\n")
            errors += [row["error"]] if "error" in row else []
            cut += [x] if isinstance(x := row.get("p_truncated"), float) else []
    return written


def serve(
    policy: str,
    lenvm: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_num_seqs: int = 64,
    max_candidates: int = 40,
    lenvm_memory: str | None = None,
    lenvm_dtype: str = "auto",
    extra: Any = (),
) -> Answer:
    """Serve a policy with length guidance by vLLM; any OpenAI client sends `vllm_xargs`.

    Further options are handed to `vllm serve`.

    Example: `lenvm serve --policy demo --lenvm runs/demo/checkpoint/lenvm --max-model-len 512`

    Args:
        host: address to listen on.
        port: port to listen on.
        max_candidates: maximum number of candidates per step.
    """
    from lenvm_rl.vllm import serve as server
    from lenvm_rl.vllm.options import GuidanceOptions

    options = GuidanceOptions(
        checkpoint=str(lenvm.resolve()),
        max_candidates=max_candidates,
        memory=lenvm_memory,
        dtype=lenvm_dtype,
    )
    server.check_server(policy, options, max_num_seqs=max_num_seqs, extra=extra)
    command = server.serve_command(
        policy, options, host=host, port=port, max_num_seqs=max_num_seqs, extra=extra
    )
    print("Once it is up, ask for a response of at most 60 tokens:")
    print(server.curl_line(policy, host=host, port=port))
    server.serve(command, options)  # which does not return
    return Answer({})


def recipes(name: str | None = None) -> Answer:
    """List the recipes and their folder, or print the folder of one, for scripts.

    Example: `lenvm recipes`

    Example: `python -m verl.trainer.main_ppo --config-path "$(lenvm recipes pretrain)"
    --config-name demo`

    Example: `"$(lenvm recipes grpo_length)"/run.sh demo`

    Args:
        name: print the folder of this one alone.
    """
    from rich.table import Table

    from lenvm_rl.demo.launch import recipes_dir

    root = recipes_dir()
    folders = sorted(path for path in root.iterdir() if (path / "README.md").is_file())
    known = {folder.name: folder for folder in folders}
    if name is not None:
        if name not in known:
            raise ValueError(f"there is no recipe {name!r}: {', '.join(known)}.")
        return Answer({name: str(known[name])}, str(known[name]), silent=True)
    table = Table("recipe", "what", "configurations", box=None, pad_edge=False)
    for folder in folders:
        title = (folder / "README.md").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        configs = sorted(path.stem for path in folder.glob("*.yaml"))
        table.add_row(folder.name, title, ", ".join(configs))
    return Answer({"recipes": str(root), "names": sorted(known)}, table)
