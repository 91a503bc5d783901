"""Guidance of one decoding step: from logits to guided logits.

    guide = Guide(scorer, eos_token_ids=[2], max_candidates=20)
    guide.apply(logits, rows)     # every step, in place, before temperature and truncation
    guide.close(key)              # when a request has ended

For each guided row: candidates of the policy, their lengths by the scorer, the rule of the row's
mode, and the guided distribution p' written back as logits. All other rows keep their bits.
Engines differ in how they name rows and keep tokens; that is all an adapter has to translate.

`GuidedRow` is what is known of one request in one step, `Batch` the same of all of them as tensors:
most steps guide the same requests as the step before, so that what they ask for is turned into
tensors once, and only the number of tokens generated is new.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lenvm_rl.core import (
    MODES,
    Guided,
    RowNumbers,
    forbids_eos,
    guide,
    predicted_length,
    select_candidates,
)
from lenvm_rl.core.guidance import SPARE_SHARES, tokens_left, tokens_to_spare
from lenvm_rl.core.tilt import working_dtype
from lenvm_rl.guidance.exact.cache import to_device
from lenvm_rl.guidance.interface import CandidateScorer, History, PoolExhausted
from lenvm_rl.guidance.lazy import Look, Looks
from lenvm_rl.guidance.settings import TARGET_MODES, GuidanceSettings

_COLUMNS = ("temperature", "top_k", "top_p", "min_p", "min_entropy", "mode", *RowNumbers._fields)


@dataclass(frozen=True, slots=True)
class GuidedRow:
    """One request in one step."""

    index: int
    """Row of the logits."""
    key: Hashable
    """Names the request from its first step to `Guide.close`."""
    settings: GuidanceSettings
    """What it asks for."""
    history: History
    """Its tokens, the newest included."""
    prompt_length: int
    """Tokens of its prompt: the rest of the history is response."""
    temperature: float = 1.0
    """What the sampler will divide its logits by; 0 is greedy."""
    ends: frozenset[int] | None = None
    """Tokens that end its response; None are the guide's own. Empty: it goes on to its limit, and
    what is EOS elsewhere is a token like any other."""

    own_ends: bool = False
    """Whether some of `ends` are this request's alone. The LenVM, which knows how far the policy's
    EOS is, knows nothing of them: equal and equal_soft take none before n, and one at n."""

    @property
    def generated(self) -> int:
        """Response tokens so far."""
        return len(self.history) - self.prompt_length

    @property
    def used_up(self) -> bool:
        """Whether the response has as many tokens as were asked for; no without a target."""
        settings = self.settings
        if settings.target is None:
            return False
        return settings.target - self.generated - settings.count_eos <= 0

    @property
    def forces_eos(self) -> bool:
        """Whether an end is forced once n is used up."""
        settings = self.settings
        held = self.own_ends and settings.mode in ("equal", "equal_soft")
        return settings.forces_eos or (held and settings.force_eos is None)

    @property
    def steered(self) -> bool:
        """Whether this step is touched at all: at_least lets go once n is reached."""
        done = self.settings.mode == "at_least" and self.used_up
        return not (done or self.settings.changes_nothing)


def numbers_of(rows: Sequence[GuidedRow], device: torch.device) -> dict[str, Tensor]:
    """Every number of the rows as [R] columns, in one transfer."""
    lines = []
    for row in rows:
        s = row.settings
        by_name = {
            "temperature": row.temperature,
            "top_k": max(s.top_k, 0),
            "top_p": s.top_p,
            "min_p": s.min_p,
            "min_entropy": s.min_entropy,
            "mode": MODES.index(s.mode),
            "generated": row.generated,
            "target": s.target or 0,
            "count_eos": s.count_eos,
            "force_eos": row.forces_eos,
            "beta": s.beta or 0.0,
            "scale": 1.0 if s.scale is None else s.scale,
            "scale_length": s.scale_of == "length",
            "value_space": s.space == "value",
            "extreme": s.extreme,
            "short_weight": s.short_weight,
            "max_beta": s.max_beta,
            "risk": s.risk or 0.0,
        }
        lines.append([float(by_name[name]) for name in _COLUMNS])
    columns = to_device(np.array(lines).T, device).to(working_dtype(device))
    return dict(zip(_COLUMNS, columns.unbind(), strict=True))


def ends_of(rows: Sequence[GuidedRow], usual: Collection[int], size: int) -> np.ndarray:
    """[R, E] the tokens that end each row's response; a row with fewer repeats its first one, and
    one without any has -1.

    Args:
        usual: ends of the rows that name none.
        size: of the vocabulary; an id outside of it is never sampled.
    """
    ends = [
        sorted(x for x in (usual if row.ends is None else row.ends) if 0 <= x < size)
        for row in rows
    ]
    width = max(1, *map(len, ends))
    padded = [(e or [-1]) + (e or [-1])[:1] * (width - max(len(e), 1)) for e in ends]
    return np.array(padded, dtype=np.int64)


class Batch:
    """Requests that are steered together; R rows.

    Args:
        rows: of the first such step.
        device: of the logits.
        max_candidates: most candidates of a row.
        ends: tokens that end the response of rows that name none.
        size: tokens that the policy chooses among.
    """

    def __init__(
        self,
        rows: Sequence[GuidedRow],
        device: torch.device,
        *,
        max_candidates: int,
        ends: Collection[int],
        size: int,
    ):
        self.device = device
        self.size = size
        self._names = _names(rows)
        asked = [row.settings for row in rows]
        table = numbers_of(rows, device)
        self.mode = table["mode"].long()
        self.ends = to_device(ends_of(rows, ends, size), device)
        """[R, E] tokens that end each row's response, see `rows.ends_of`."""
        own_ends = np.array([row.own_ends for row in rows])
        self._own_ends = to_device(own_ends, device) if own_ends.any() else None
        self.present = {s.mode for s in asked}
        """Modes that occur."""
        self.has_targets = not self.present.isdisjoint(TARGET_MODES)
        self.numbers = {name: table[name] for name in RowNumbers._fields}
        """What the modes read, [R] each; `generated` is that of the newest step."""
        limits = [s.top_k if s.top_k > 0 else max_candidates for s in asked]
        self.width = min(max(limits), max_candidates)
        """Columns that the row with the most candidates needs."""
        self.limits = _limits(table, rows, narrower=min(limits) < self.width)
        """Keyword arguments of `select_candidates`; what changes nothing is left out."""
        self.min_entropy = table["min_entropy"] if any(s.min_entropy > 0 for s in asked) else None
        temperature = self.limits.get("temperature")
        self.scale: Tensor | None = None
        """[R, 1] what log-probabilities are written times; None is 1."""
        if temperature is not None:
            self.scale = torch.where(temperature > 0, temperature, 1.0).float()[:, None]
        self._place = [row.index for row in rows]
        first = self._place[0]
        self._adjacent = self._place == list(range(first, first + len(rows)))
        self._index = to_device(np.array(self._place), device)

    def is_of(self, rows: Sequence[GuidedRow], device: torch.device, size: int) -> bool:
        """Whether these are the requests, in these rows of the logits."""
        return (self.device, self.size) == (device, size) and self._names == _names(rows)

    def take(self, logits: Tensor) -> Tensor:
        """[R, V] the rows of `logits` (or of anything with a row for each of theirs): themselves
        where they lie together, else a copy."""
        if self._adjacent:
            return logits[self._place[0] : self._place[0] + len(self._place)]
        return logits.index_select(0, self._index)

    def put(self, logits: Tensor, taken: Tensor) -> None:
        """Write what `take` gave back to where it was taken from."""
        if not self._adjacent:
            logits.index_copy_(0, self._index, taken)

    def fill(self, logits: Tensor, value: float) -> None:
        """Set these rows of `logits`, whole."""
        if self._adjacent:
            self.take(logits).fill_(value)
        else:
            logits.index_fill_(0, self._index, value)

    def begin_step(self, rows: Sequence[GuidedRow]) -> Tensor | None:
        """Take over how far the rows are. Returns [R] bool, those whose tokens are used up; None
        where there is none."""
        if not self.has_targets:
            return None
        wide = self.numbers["generated"].dtype
        generated = to_device(np.array([row.generated for row in rows]), self.device)
        self.numbers["generated"] = generated.to(wide)
        used_up = np.array([row.used_up for row in rows])
        return to_device(used_up, self.device) if used_up.any() else None

    def is_end(self, ids: Tensor) -> Tensor:
        """[R, K] bool: candidates [R, K] that end their row's response."""
        if self.ends.shape[1] == 1:
            return ids == self.ends
        return (ids[:, :, None] == self.ends[:, None]).any(-1)

    def forbidden(self) -> Tensor | None:
        """[R] bool, rows that may not end yet; None where no mode says so."""
        if "at_least" not in self.present and self._own_ends is None:
            return None
        n = self.numbers
        forbids = forbids_eos(
            self.mode,
            n["generated"],
            n["target"],
            count_eos=n["count_eos"],
            own_ends=False if self._own_ends is None else self._own_ends,
        )
        return forbids & (self.ends[:, 0] >= 0)


def _names(rows: Sequence[GuidedRow]) -> list[tuple]:
    return [
        (row.index, row.key, row.settings, row.temperature, row.ends, row.own_ends) for row in rows
    ]


def _limits(
    table: dict[str, Tensor], rows: Sequence[GuidedRow], *, narrower: bool
) -> dict[str, Tensor]:
    limits, asked = {}, [row.settings for row in rows]
    has_top_p = any(s.top_p < 1 for s in asked)
    if any(row.temperature not in (0, 1) for row in rows):
        limits["temperature"] = table["temperature"]
    if narrower or has_top_p:  # the mass of top-p is counted among the top k
        limits["top_k"] = table["top_k"].long()
    if has_top_p:
        limits["top_p"] = table["top_p"]
    if any(s.min_p > 0 for s in asked):
        limits["min_p"] = table["min_p"]
    return limits


class _Candidates(NamedTuple):
    """What n rows choose from, each [n, K]."""

    ids: Tensor
    log_probs: Tensor
    mask: Tensor
    is_eos: Tensor


class _Asked(NamedTuple):
    """What n rows ask of a distribution."""

    gammas: list[float]
    left: Tensor | None
    """[n] tokens that may still come, where P(l > left) is wanted."""

    def of(self, rows: list[int], which: Tensor) -> _Asked:
        """Of some `rows`, which lie at `which` on the device too."""
        left = None if self.left is None else self.left[which]
        return _Asked([self.gammas[i] for i in rows], left)


class Guide:
    """Steers batches of running requests with one scorer.

    Args:
        scorer: values candidates; its configuration gives gamma and target.
        eos_token_ids: tokens that end a response, where its row does not say it itself.
        max_candidates: most candidates of a row; larger or missing top-k are cut to it.
        drops_rows: leave rows out whose scores would change nothing; None does so on a CPU, where
            they are known without waiting for the device.
    Raises:
        ValueError: no EOS, max_candidates below 1, or a LenVM without gamma.
    """

    def __init__(
        self,
        scorer: CandidateScorer,
        *,
        eos_token_ids: Iterable[int],
        max_candidates: int,
        drops_rows: bool | None = None,
    ):
        self.scorer = scorer
        self.drops_rows = drops_rows
        self.eos_token_ids = sorted(set(eos_token_ids))
        self.max_candidates = max_candidates
        self.gamma = scorer.config.require_gamma()
        # Read once: an attribute of a configuration takes longer than a small tensor operation.
        self._known_tokens = scorer.config.vocab_size
        self._space = {
            "target": scorer.config.target,
            "gamma": self.gamma,
            "length_scale": scorer.config.length_scale,
        }
        if not self.eos_token_ids:
            raise ValueError("no EOS token is given: without one no response can be ended")
        if max_candidates < 1:
            raise ValueError(f"max_candidates must be at least 1, got {max_candidates}")
        self._slots: OrderedDict[Hashable, int] = OrderedDict()  # least recently used first
        self._batch: Batch | None = None
        self._looks = Looks()

    def check_vocabulary(self, size: int) -> None:
        """Raise ValueError unless the LenVM knows all `size` tokens that the policy can choose."""
        if size > self._known_tokens:
            raise ValueError(
                f"the policy chooses among {size} tokens, but the LenVM knows only "
                f"{self._known_tokens}: it was trained for another tokenizer. Use a LenVM of this "
                f"policy"
            )
        if self.eos_token_ids[0] >= size:  # one of several does not matter: it is never sampled
            raise ValueError(
                f"EOS token {self.eos_token_ids[0]} is outside the vocabulary of {size} tokens"
            )

    def close(self, key: Hashable) -> None:
        """A request has ended: free its slot. Unknown keys (never scored) are ignored."""
        self._looks.forget(key)
        self._release(key)

    def _release(self, key: Hashable) -> None:
        slot = self._slots.pop(key, None)
        if slot is not None:
            self.scorer.close(slot)

    @torch.inference_mode()
    def apply(
        self,
        logits: Tensor,
        rows: Sequence[GuidedRow],
        *,
        hidden: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> None:
        """Write guided logits over the rows that are steered in this step, in place.

        A steered row becomes `T log p'` at its candidates and -inf elsewhere, so that
        `softmax(logits / T)` is p' (T = 0 counts as 1: the argmax is that of p'). Where EOS is
        forced, only EOS tokens stay, unless a grammar has excluded all of them already.

        Args:
            logits: [N, V] raw logits of the policy.
            rows: at most one per row of logits; those not listed are not touched.
            hidden: [N, H] hidden states of the policy that the logits were made from, for a
                scorer that reads them (`reads_policy`).
            padding: [N, P] further columns of the policy's output layer that stand for no token:
                -inf where a row is steered.
        Raises:
            PoolExhausted: more steered rows than the scorer has slots; nothing was written.
        """
        steered = [row for row in rows if row.steered]
        if not steered:
            return
        self.check_vocabulary(logits.shape[1])
        batch = self._batch_of(steered, logits)
        due = np.array([self._is_due(row) for row in steered])
        # Where none is, the tokens generated do not matter: who may not end yet still may not.
        used_up = batch.begin_step(steered) if due.any() else None
        chosen = batch.take(logits)

        ids, log_probs, mask = select_candidates(
            chosen,
            max_candidates=batch.width,
            forbidden=batch.forbidden(),
            eos_ids=batch.ends,
            **batch.limits,
        )
        force = None
        if due.any():
            step = _Candidates(ids, log_probs, mask, batch.is_end(ids) & mask)
            guided = self._guided(rows, steered, batch, step, due, used_up, hidden)
            log_probs, force = guided.log_probs, guided.force_eos
        forces = used_up is not None and any(row.used_up and row.forces_eos for row in steered)
        _write(
            chosen,
            ids,
            log_probs if batch.scale is None else log_probs * batch.scale,
            batch.ends,
            force if forces else None,
        )
        batch.put(logits, chosen)
        if padding is not None and padding.shape[1]:
            batch.fill(padding, -torch.inf)

    def _batch_of(self, rows: Sequence[GuidedRow], logits: Tensor) -> Batch:
        """The last step's batch where the same requests are steered again."""
        device, size = logits.device, logits.shape[1]
        if self._batch is None or not self._batch.is_of(rows, device, size):
            self._batch = Batch(
                rows,
                device,
                max_candidates=self.max_candidates,
                ends=self.eos_token_ids,
                size=size,
            )
        return self._batch

    def _is_due(self, row: GuidedRow) -> bool:
        """Whether the row's lengths matter in this step; one whose bound is far away waits."""
        if not row.settings.may_wait or row.used_up:
            return True
        return self._looks.due(row.key, len(row.history))

    def _guided(
        self,
        rows: Sequence[GuidedRow],
        steered: Sequence[GuidedRow],
        batch: Batch,
        step: _Candidates,
        due: np.ndarray,
        used_up: Tensor | None,
        hidden: Tensor | None,
    ) -> Guided:
        """The guided distribution of the rows that are `due` [R]; p of the others."""
        ids, log_probs, mask, is_eos = step
        others = mask & ~is_eos
        wanted = _worth_scoring(log_probs, mask, others, is_eos, used_up, batch.min_entropy)
        if not due.all():
            wanted &= to_device(due, ids.device)
        taken = self._taken(wanted, due)
        if not taken and used_up is None:  # as on most steps of a CPU: there is no choice to make
            return Guided(log_probs, torch.zeros_like(batch.mode, dtype=torch.bool))
        asked, active = self._asked(steered, batch), {row.key for row in rows}
        scored = others & wanted[:, None] if self._drops(ids) else others
        scores = self._scores(active, steered, batch, ids, scored, hidden, asked, taken)
        ruled = wanted if used_up is None else wanted | used_up
        gamma = self.gamma if asked is None else ids.new_tensor(asked.gammas, dtype=torch.float64)
        beyond = scores[1:] if len(scores) > 1 else None
        self._remember(steered, batch, log_probs, scores[0], beyond, gamma, taken)
        return guide(
            log_probs,
            scores[0],
            mask,
            is_eos,
            mode=torch.where(ruled, batch.mode, MODES.index("off")),
            gamma=gamma,
            present=batch.present,
            beyond=None if beyond is None else beyond[0],
            **batch.numbers,
        )

    def _taken(self, wanted: Tensor, due: np.ndarray) -> list[int]:
        """Rows that the scorer is asked about.

        Which rows need no scoring is known on the device. Only the CPU can be asked without
        waiting, so only there they leave the batch. Elsewhere all that are due are scored: the
        token that will be sampled is then among those whose keys and values the scorer holds, also
        where it is the only candidate.
        """
        return np.flatnonzero(wanted.numpy() if self._drops(wanted) else due).tolist()

    def _drops(self, x: Tensor) -> bool:
        return x.device.type == "cpu" if self.drops_rows is None else self.drops_rows

    def _remember(
        self,
        steered: Sequence[GuidedRow],
        batch: Batch,
        log_probs: Tensor,
        lengths: Tensor,
        beyond: Tensor | None,
        gamma: Tensor | float,
        taken: list[int],
    ) -> None:
        """When the rows that were looked at are due again."""
        waiting = [i for i in taken if steered[i].settings.may_wait and not steered[i].used_up]
        if not waiting:
            return
        n = batch.numbers
        spare = tokens_to_spare(
            log_probs,
            lengths,
            mode=batch.mode,
            gamma=gamma,
            left=tokens_left(n["target"], n["generated"], count_eos=n["count_eos"]),
            risk=n["risk"],
            beyond=beyond,
        )
        looks = (
            Look(row.key, len(row.history), row.settings.lazy)
            for row in (steered[i] for i in waiting)
        )
        if len(waiting) < len(steered):
            spare = spare[to_device(np.array(waiting), spare.device)]
        self._looks.looked(list(looks), spare)

    def _scores(
        self,
        active: set[Hashable],
        steered: Sequence[GuidedRow],
        batch: Batch,
        ids: Tensor,
        scored: Tensor,
        hidden: Tensor | None,
        asked: _Asked | None,
        taken: list[int],
    ) -> Tensor:
        """[1, R, K] predicted remaining tokens of the candidates `scored` in the rows `taken`;
        [1 + S, R, K] beside P(l > n) for each share of n_left in `SPARE_SHARES` where a row has a
        risk. 0 at what was not scored."""
        states = {}
        if hidden is not None and getattr(self.scorer, "reads_policy", False):
            states["hidden"] = batch.take(hidden)
        if not taken:
            return torch.zeros(1, *ids.shape, device=ids.device)
        width = ids.shape[1]
        if self._drops(ids):
            width = int(np.flatnonzero(scored.numpy().any(0))[-1]) + 1
        slots = self._open_slots([steered[i] for i in taken], active)
        histories = [steered[i].history for i in taken]
        if len(taken) == len(steered):
            found = self._score(slots, histories, ids[:, :width], scored[:, :width], states, asked)
            return found if width == ids.shape[1] else F.pad(found, (0, ids.shape[1] - width))
        which = to_device(np.array(taken), ids.device)
        states = {name: x[which] for name, x in states.items()}
        own = None if asked is None else asked.of(taken, which)
        found = self._score(
            slots, histories, ids[which, :width], scored[which, :width], states, own
        )
        scores = torch.zeros(len(found), *ids.shape, device=ids.device)
        scores[:, which, :width] = found
        return scores

    def _asked(self, steered: Sequence[GuidedRow], batch: Batch) -> _Asked | None:
        """What the rows ask of a distribution beyond its values at the LenVM's own gamma."""
        settings = [row.settings for row in steered]
        risky = any(s.risk is not None for s in settings)
        own = all(s.gamma in (None, self.gamma) for s in settings)
        if self.scorer.config.bins is None or (own and not risky):
            return None
        n = batch.numbers
        left = tokens_left(n["target"], n["generated"], count_eos=n["count_eos"])
        return _Asked([s.gamma or self.gamma for s in settings], left if risky else None)

    def _score(
        self, slots, histories, ids: Tensor, scored: Tensor, states, asked: _Asked | None
    ) -> Tensor:
        """[1 or 1 + S, n, K], see `_scores`."""
        if asked is None:
            z = self.scorer.score(slots, histories, ids, scored, **states)
            return predicted_length(z, **self._space).masked_fill(~scored, 0.0)[None]
        scorer: Any = self.scorer  # of a distribution, and so one that gives its outputs
        outputs = scorer.outputs(slots, histories, ids, scored, **states)
        lengths = torch.zeros(ids.shape, device=ids.device)
        gammas = to_device(np.array(asked.gammas), ids.device)[:, None]
        for gamma in sorted(set(asked.gammas)):
            z = scorer.config.read(outputs, gamma=gamma)  # of all rows: to pick some would wait
            own = predicted_length(z, **{**self._space, "gamma": gamma})
            lengths = torch.where(gammas == gamma, own, lengths)
        scores = [lengths]
        if asked.left is not None:
            left, after = asked.left[:, None].expand(ids.shape), scorer.config.require_bins()
            scores += [after.of(outputs).longer_than(left * (1.0 - x)) for x in SPARE_SHARES]
        return torch.stack(scores).masked_fill(~scored, 0.0)

    def _open_slots(self, rows: Sequence[GuidedRow], active: set[Hashable]) -> list[int]:
        """The rows' slots; new ones take the place of requests that are not in this step."""
        for row in rows:
            if row.key not in self._slots:
                self._slots[row.key] = self._open(row.history, active)
            self._slots.move_to_end(row.key)
        return [self._slots[row.key] for row in rows]

    def _open(self, history: History, active: set[Hashable]) -> int:
        while True:
            try:
                return self.scorer.open(history)
            except PoolExhausted:
                idle = next((key for key in self._slots if key not in active), None)
                if idle is None:
                    raise
                self._release(idle)


def _worth_scoring(
    log_probs: Tensor,
    mask: Tensor,
    others: Tensor,
    is_eos: Tensor,
    used_up: Tensor | None,
    min_entropy: Tensor | None,
) -> Tensor:
    """[R] bool: rows that have a choice to make which depends on lengths.

    One candidate is no choice; a flat enough distribution is asked for by min_entropy (nats); and
    a used-up row takes EOS where it can. `others` are the candidates but EOS.
    """
    if mask.shape[1] == 1:
        return torch.zeros_like(mask[:, 0])
    wanted = mask[:, 1] & others.any(-1)  # a mask is a prefix: two candidates at least
    choice = None
    if min_entropy is not None:
        entropy = -(log_probs.exp() * log_probs).masked_fill(~mask, 0.0).sum(-1).clamp(min=0.0)
        choice = entropy >= min_entropy
    if used_up is not None:
        unended = ~is_eos.any(-1)
        choice = torch.where(used_up, unended, True if choice is None else choice)
    return wanted if choice is None else wanted & choice


def _write(
    rows: Tensor, ids: Tensor, log_probs: Tensor, ends: Tensor, force: Tensor | None
) -> None:
    """Leave `log_probs` at the candidates and -inf elsewhere, in place; in rows [R] of `force`
    their `ends` [R, E] alone, unless a grammar has excluded all of them already."""
    values = log_probs.to(rows.dtype)
    if force is None:
        rows.fill_(-torch.inf).scatter_(1, ids, values)
        return
    place = ends.clamp(min=0)
    before = rows.gather(1, place)
    ends_now = force & (ends[:, 0] >= 0) & (before.amax(-1) > -torch.inf)
    ends_now = ends_now[:, None]
    rows.fill_(-torch.inf).scatter_(1, ids, values.masked_fill(ends_now, -torch.inf))
    rows.scatter_(1, place, torch.where(ends_now, before, rows.gather(1, place)))
