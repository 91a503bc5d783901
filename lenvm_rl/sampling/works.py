"""What works with a LenVM on a trunk: tried on it with a few tokens, not read off a list.

    packed     training with responses end to end in one row (use_remove_padding, the default)
    scoring    values of candidate tokens while a policy samples: generate, serve, evaluations
    sampling   the trunk's language model as a policy that transformers samples from

Plain training (use_remove_padding=false) and prediction work with every causal trunk, and only
those become a LenVM (`LengthValueModel.from_policy`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lenvm_rl.guidance.heads.q_head import make_scorer
from lenvm_rl.guidance.interface import History
from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.decoder import FOREIGN, packs
from lenvm_rl.sampling.transformers.decode_batch import check_batching

_HISTORIES = ((3, 5, 8), (4, 6, 7, 9, 2))  # token ids; unlike in length, so that rows are padded
_CANDIDATES = (5, 2)
_UNPACKED = "critic.model.use_remove_padding=false"
_ELSEWHERE = "this trunk can be trained and read, but not guide; guide by one on Qwen or Llama"
_CLOSE = 1e-3  # of a z near 1 in float32; a wrong mask or position moves z by more


def what_works(model: LengthValueModel) -> dict[str, str | None]:
    """Why something will not work, as a sentence, or None where it will.

    Args:
        model: on a CPU or an accelerator, in float32; put in evaluation mode and back.
    Returns:
        {"packed", "scoring", "sampling"}.
    """
    training = model.training
    try:
        return {
            "packed": _packed(model.eval()),
            "scoring": _scoring(model),
            "sampling": _sampling(model),
        }
    finally:
        model.train(training)


def _packed(model: LengthValueModel) -> str | None:
    try:
        apart = packs(model.model)
    except FOREIGN as error:
        return f"packed rows cannot be tried on this trunk ({error}): train with {_UNPACKED}."
    if apart:
        return None
    return (
        "responses that are packed into one row would read each other, as they do in recurrent and "
        "convolutional layers and in attention that is not told where one begins: train with "
        f"{_UNPACKED}."
    )


@torch.inference_mode()
def _scoring(model: LengthValueModel) -> str | None:
    """Values of candidates in two steps, beside those of whole passes over the same tokens."""
    size = model.config.vocab_size
    prompts = [[token % size for token in history] for history in _HISTORIES]
    outputs: list[list[int]] = [[] for _ in prompts]
    histories = [History(*both) for both in zip(prompts, outputs, strict=True)]
    choices = [token % size for token in _CANDIDATES]
    device = next(model.parameters()).device
    candidates = torch.tensor([choices] * len(prompts), device=device)
    try:
        if model.config.frozen_trunk and model.config.head == "candidate":
            return None  # reads the policy's own states: no trunk of its own runs
        scorer = make_scorer(
            model,
            slots=len(prompts),
            max_length=16,
            max_candidates=len(choices),
            fixed_shapes=False,
        )
        slots = [scorer.open(history) for history in histories]
        for _ in range(2):
            scored = scorer.score(slots, histories, candidates, torch.ones_like(candidates) > 0)
            wanted = _recomputed(model, histories, choices).to(scored)
            if not torch.allclose(scored, wanted, rtol=_CLOSE, atol=_CLOSE):
                worst = (scored - wanted).abs().max().item()
                return (
                    f"candidates scored with cached tokens differ by {worst:.2g} in z from whole "
                    f"passes: {_ELSEWHERE}."
                )
            for output in outputs:
                output.append(choices[0])
    except FOREIGN as error:
        return str(error)
    return None


def _recomputed(model: LengthValueModel, histories: list[History], choices: list[int]) -> Tensor:
    """z of every history with every choice behind it: [R, K]."""
    device = next(model.parameters()).device

    def z(tokens: list[int]) -> Tensor:
        return model.length_logits(torch.tensor([tokens], device=device))[0, -1]

    rows = [[z([*history.tail(0), token]) for token in choices] for history in histories]
    return torch.stack([torch.stack(row) for row in rows])


def _sampling(model: LengthValueModel) -> str | None:
    try:
        check_batching(model.model)
    except ValueError as error:
        return str(error)
    return None
