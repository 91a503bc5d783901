"""Candidates: the next tokens that guidance chooses between.

Shapes: R rows (requests), V vocabulary, K candidates, E EOS tokens.

The candidates are the tokens that a sampler with temperature, top-k, top-p and min-p could draw,
restricted in this order and renormalised, at most `max_candidates` of them. A longer tail would
have to be valued token by token, and guidance could pick junk from it.
"""

import torch
from torch import Tensor

from lenvm_rl.core.checks import as_float, check_rank

_COLUMN = 64  # scores whose maximum is taken together in a long row


def select_candidates(
    logits: Tensor,
    *,
    max_candidates: int,
    temperature: Tensor | None = None,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
    forbidden: Tensor | None = None,
    eos_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The most probable tokens of each row, with their probabilities among themselves.

    Tokens at -inf (grammar, bad words) are never candidates. At least one candidate is kept. A
    row's candidates depend on that row alone, and nothing here waits for the device.

    Args:
        logits: [R, V] of the policy, any float dtype.
        max_candidates: width K of the result, at least 1; V where V is smaller.
        temperature: [R] >= 0; 0 counts as 1 (greedy rows keep the model's own distribution), as
            does None.
        top_k: [R] int, the k most probable; 0 is no limit, the result being cut to K in any case.
        top_p: [R] in (0, 1], the smallest set with this mass among the top k.
        min_p: [R] in [0, 1], none below this share of the most probable one's probability.
        forbidden: [R] bool, rows whose `eos_ids` are no candidates. Where nothing else is left
            (a grammar that demands the end), they stay.
        eos_ids: [E] or [R, E] long, needed with `forbidden`: the tokens that end a response. A row
            with fewer repeats one; what a row that is not forbidden has there does not matter.
    Returns:
        ids: [R, K] long, by falling probability, ties by id (of tokens tied at the last place of
            the K, any). Where masked out still valid ids.
        log_probs: [R, K] float32, normalised over the row's candidates; -inf where masked out.
        mask: [R, K] bool, True at candidates; always a prefix of the row.
    Raises:
        ValueError: not [R, V], max_candidates below 1, `forbidden` without `eos_ids`.
    """
    check_rank(logits, name="logits", axes="RV")
    if max_candidates < 1:
        raise ValueError(f"max_candidates must be at least 1, got {max_candidates}")
    scores = as_float(logits, name="logits").float()
    if forbidden is not None:
        if eos_ids is None:
            raise ValueError("forbidden says where EOS may not be chosen: give eos_ids, too")
        scores = _without(scores, eos_ids, forbidden)
    ids, kept = _largest(scores, min(max_candidates, logits.shape[1]))
    scale = None
    if temperature is not None:
        scale = torch.where(temperature > 0, temperature, 1.0).float()[:, None]
        kept = kept / scale
    mask = kept > -torch.inf
    if top_k is not None:
        rank = torch.arange(kept.shape[1], device=kept.device)[None]
        mask &= (rank < top_k[:, None]) | (top_k[:, None] <= 0)
    if top_p is not None:
        mask &= _nucleus(kept, mask, scores, scale, top_k, top_p)
    if min_p is not None:
        mask &= kept >= kept[:, :1] + min_p.float().log()[:, None]
    mask[:, 0] = True
    return ids, torch.log_softmax(kept.masked_fill(~mask, -torch.inf), dim=-1), mask


def _without(scores: Tensor, eos_ids: Tensor, forbidden: Tensor) -> Tensor:
    """[R, V] with the EOS tokens of forbidden rows at -inf, unless they are all there is."""
    ends = eos_ids.expand(len(scores), -1).clamp(min=0)
    removed = scores.scatter(1, ends, -torch.inf)
    something_left = removed.amax(-1) > -torch.inf
    return torch.where((forbidden & something_left)[:, None], removed, scores)


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """[R, k] ids and scores by falling score, ties by id."""
    top, ids = _top(scores, k)
    ids, by_id = ids.sort(dim=-1)
    top, by_score = top.gather(1, by_id).sort(dim=-1, descending=True, stable=True)
    return ids.gather(1, by_score), top


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """[R, k] the k largest scores of each row and their ids, in any order; as `topk`.

    A long row is read in columns of `_COLUMN` scores, token i in column i % B of B: its k largest
    lie in the k columns with the largest maxima, so that only those are searched. Reading maxima
    is many times faster than a search through the whole vocabulary.
    """
    rows, size = scores.shape
    columns = size // _COLUMN
    if columns < 4 * k:
        return scores.topk(k, dim=-1, sorted=False)
    whole = columns * _COLUMN
    maxima = scores[:, :whole].unflatten(1, (_COLUMN, columns)).amax(1)  # [R, B]
    chosen = maxima.topk(k, dim=-1, sorted=False).indices
    inside = torch.arange(0, whole, columns, device=scores.device)
    ids = (chosen[:, :, None] + inside).flatten(1)  # [R, k _COLUMN]
    rest = torch.arange(whole, size, device=scores.device).expand(rows, -1)
    ids = torch.cat([ids, rest], dim=1)
    top, place = scores.gather(1, ids).topk(k, dim=-1, sorted=False)
    return top, ids.gather(1, place)


def _nucleus(
    kept: Tensor,
    mask: Tensor,
    scores: Tensor,
    scale: Tensor | None,
    top_k: Tensor | None,
    top_p: Tensor,
) -> Tensor:
    """[R, K] bool: tokens before which less than top_p of the mass lies.

    The mass is relative to the top k where there is a limit, otherwise to the whole vocabulary,
    whether or not all of it fits into K.
    """
    total = torch.logsumexp(scores if scale is None else scores / scale, dim=-1)
    if top_k is not None:
        among_k = torch.logsumexp(kept.masked_fill(~mask, -torch.inf), dim=-1)
        total = torch.where(top_k > 0, among_k, total)
    probs = (kept - total[:, None]).exp() * mask
    mass_before = probs.cumsum(-1) - probs
    return (mass_before < top_p[:, None]) | (top_p[:, None] >= 1)
