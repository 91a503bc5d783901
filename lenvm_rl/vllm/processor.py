"""The logits processor of vLLM: its rows and requests as rows of `lenvm_rl.guidance.Guide`.

One class for both of vLLM's model runners, named by class path:

    vllm serve POLICY --logits-processors lenvm_rl.vllm:LengthGuidance \\
        --additional-config '{"lenvm": {"checkpoint": "LENVM_DIR"}}'

A request asks for guidance with `vllm_xargs` over HTTP, `SamplingParams(extra_args=...)` offline:
`{"lenvm_mode": "at_most", "lenvm_target": 200}`, see `lenvm_rl.guidance.GuidanceSettings`.

What ends a response is the request's: EOS of the policy (tokenizer and generation configuration)
and its own `stop_token_ids`; under `ignore_eos` the latter alone.

What else shapes the distribution. Grammars, allowed tokens, bad words, logit_bias and min_tokens
act before guidance: what they exclude is no candidate. The request's own top_k, top_p and min_p
act after it, on the guided distribution; to choose candidates there are lenvm_top_k, lenvm_top_p
and lenvm_min_p. Penalties act after guidance in the V1 runner, among the candidates alone, and
before it in V2. `--logprobs-mode processed_logprobs` returns the log-probabilities of what was
sampled from. Greedy requests take the most probable token of the guided distribution.

Tensor parallelism: every rank runs this on the same gathered logits, with the same LenVM, so that
all ranks write the same distribution.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm import SamplingParams
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as V1Processor

from lenvm_rl.guidance import GuidanceSettings, History
from lenvm_rl.guidance.exact.cache import to_device
from lenvm_rl.guidance.guide import Guide, GuidedRow
from lenvm_rl.guidance.thinking import SegmentGuidance
from lenvm_rl.vllm.internals import capture
from lenvm_rl.vllm.options import GuidanceOptions, eos_token_ids, load_scorer, request_ends
from lenvm_rl.vllm.refusals import check_request

try:  # vLLM 0.31 and newer
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as V2Processor
except ImportError:

    class V2Processor:  # type: ignore[no-redef]
        """Stands in where vLLM has one runner interface only."""


logger = logging.getLogger("vllm.lenvm_rl")


class _Request:
    """A guided request while it is in the batch."""

    __slots__ = (
        *("ends", "history", "key", "output", "own_ends", "segment", "settings", "temperature"),
        "within",
    )

    def __init__(
        self,
        key: int,
        settings: GuidanceSettings,
        params: SamplingParams,
        usual: frozenset[int],
        segment: dict[str, Any] | None,
    ):
        self.key = key
        self.segment = segment
        self.within: SegmentGuidance | None = None
        self.settings = settings
        self.temperature = params.temperature
        self.ends = request_ends(params)
        self.own_ends = not self.ends <= usual
        self.output: list[int] = []
        self.history: History | None = None

    def begin(self, prompt: Sequence[int], output: list[int], vocab_size: int) -> None:
        """Take the request's tokens; `output` by reference. Ids of no token are read as the last
        one that the LenVM knows, so that a strange prompt cannot stop the engine."""
        if max(prompt, default=0) >= vocab_size:
            prompt = [min(token, vocab_size - 1) for token in prompt]
        self.output = output
        self.history = History(prompt, output)
        if self.segment is not None:
            self.within = SegmentGuidance(self.segment, prompt)

    def row(self, index: int) -> GuidedRow | None:
        """What is steered in this step; None outside of the segment that the LenVM counts."""
        assert self.history is not None
        row = GuidedRow(
            index=index,
            key=self.key,
            settings=self.settings,
            history=self.history,
            prompt_length=len(self.history.prompt),
            temperature=self.temperature,
            ends=self.ends,
            own_ends=self.own_ends,
        )
        return row if self.within is None else self.within.row(row)


class WeightWatch:
    """Are the LenVM's weights still what was loaded? Asked after every pause.

    An engine that is put to sleep at level 2 gives its weights away and gets the policy's anew. On
    runner V2 the LenVM's go with them, and nothing brings them back.

    Args:
        head: of the LenVM: all of its memory is given away together.
    """

    _PAUSE = 0.1  # seconds without guidance that a sleep takes at least

    def __init__(self, head: nn.Module):
        self._tensors = [p.detach() for p in head.parameters()]
        self._loaded, self._seen = self._sum(), time.monotonic()

    def check(self) -> None:
        """Raise RuntimeError where they are not. Only after a pause, when nothing is waited for."""
        now = time.monotonic()
        paused, self._seen = now - self._seen > self._PAUSE, now
        if paused and self._sum() != self._loaded:
            raise RuntimeError(
                "the LenVM's weights are no longer those that were loaded: this engine was put to "
                "sleep at level 2, which discards them, and its wake-up loads the policy's alone. "
                "Use sleep level 1, or let it not sleep (verl: rollout.free_cache_engine=False), "
                "or start the engine anew."
            )

    def _sum(self) -> int:
        """Of all bytes, so that its value depends on no order of addition."""
        return sum(int(x.flatten().view(torch.uint8).sum(dtype=torch.int64)) for x in self._tensors)


class LengthGuidance(V1Processor, V2Processor):
    """Length guidance of every request that asks for it; see the module.

    Raises:
        ValueError: at start, for anything in `lenvm_rl.vllm.options` that cannot work.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a request before it is scheduled (over HTTP: status 400)."""
        check_request(sampling_params)

    def __init__(self, vllm_config: Any, device_or_states: Any, is_pin_memory: bool = False):
        v1 = isinstance(device_or_states, torch.device)
        self._states = None if v1 else device_or_states
        self._device = device_or_states if v1 else device_or_states.device
        options = GuidanceOptions.read(vllm_config.additional_config)
        scorer = load_scorer(vllm_config, options, self._device)
        self._vocab_size = scorer.config.vocab_size
        self._segment = scorer.config.segment
        # A head that reads the policy's own states needs them from its output layer.
        self._hidden = capture() if getattr(scorer, "reads_policy", False) else None
        self._ends = frozenset(eos_token_ids(vllm_config))
        self._guide = Guide(
            scorer,
            eos_token_ids=self._ends,
            max_candidates=options.max_candidates,
        )
        self._weights = WeightWatch(scorer.head)
        self._requests: dict[int, _Request] = {}
        self._keys = itertools.count()
        self._said: set[str] = set()

    @property
    def guided(self) -> int:
        """Guided requests in the batch now."""
        return sum(request.history is not None for request in self._requests.values())

    def is_argmax_invariant(self) -> bool:
        """False: guidance acts on greedy requests too."""
        return False

    # --- V1 runner: the index is the row of the batch -------------------------------------------

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that leave, enter and move between rows."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._drop(index)
        for index, params, prompt, output in batch_update.added:
            self._drop(index)
            request = self._new_request(params)
            if request is not None and prompt:
                request.begin(prompt, output, self._vocab_size)
                self._requests[index] = request
        for source, target, direction in batch_update.moved:
            moving, there = self._requests.pop(source, None), self._requests.pop(target, None)
            if moving is not None:
                self._requests[target] = moving
            if there is not None and direction == MoveDirectionality.SWAP:
                self._requests[source] = there
            elif there is not None:
                self._guide.close(there.key)

    # --- V2 runner: the index is the request's slot in the runner's state -----------------------

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """A request takes a slot of the runner; True when it is guided."""
        self._drop(req_idx)
        request = self._new_request(sampling_params)
        if request is not None:
            self._requests[req_idx] = request
        return request is not None

    def apply_staged_writes(self) -> None:
        """Nothing is staged: settings stay on the host."""

    # --- both -----------------------------------------------------------------------------------

    def apply(self, logits: Tensor, context: Any = None) -> Tensor:
        """Write guided logits over the rows of guided requests, in place; others keep their bits.

        Args:
            logits: [N, V] before temperature.
            context: of the V2 runner, which request each row belongs to.
        """
        if not self._requests:
            return logits
        rows = self._v1_rows(len(logits)) if context is None else self._v2_rows(context)
        if rows:
            self._weights.check()
            hidden = None if self._hidden is None else self._hidden.of(logits)
            tokens, padding = logits[:, : self._vocab_size], logits[:, self._vocab_size :]
            self._guide.apply(tokens, rows, hidden=hidden, padding=padding)
        return logits

    def _v1_rows(self, count: int) -> list[GuidedRow]:
        """Rows of the batch that are guided. Rows in the middle of their prompt are among them:
        this runner does not say so. They cost their candidates and are thrown away by vLLM."""
        rows = []
        for index, request in sorted(self._requests.items()):
            if index >= count:
                continue
            if request.output and request.output[-1] < 0:
                self._error_once(
                    "vLLM hides sampled tokens from length guidance (asynchronous scheduling with "
                    "a processor that was not named by class path): requests go unguided. Start "
                    "with --logits-processors lenvm_rl.vllm:LengthGuidance, or "
                    "--no-async-scheduling."
                )
                continue
            if (row := request.row(index)) is not None:
                rows.append(row)
        return rows

    def _v2_rows(self, context: Any) -> list[GuidedRow]:
        """Rows of guided requests that are past their prompt. Which request a row belongs to, and
        how long it is, the host knows; only the newest tokens come from the device."""
        slots = context.idx_mapping_np.tolist()
        self._close_absent(set(slots))
        lengths = context.seq_lens_upper_bound_np.tolist()  # exact: nothing is drafted
        wanted = [
            (row, slot, lengths[row])
            for row, slot in enumerate(slots)
            if slot in self._requests and lengths[row] >= int(self._states.prefill_len.np[slot])
        ]
        self._read_tokens([(slot, length) for _, slot, length in wanted])
        rows = (self._requests[slot].row(row) for row, slot, _ in wanted)
        return [row for row in rows if row is not None]

    def _close_absent(self, present: set[int]) -> None:
        """Requests that are not in this step hold no slot of the scorer: this runner does not say
        when one has ended. One that comes back finds its tokens where they were."""
        for slot, request in self._requests.items():
            if request.history is not None and slot not in present:
                self._guide.close(request.key)
                request.history = None

    def _read_tokens(self, wanted: Sequence[tuple[int, int]]) -> None:
        """Bring histories to these lengths: the newest token of all rows in one copy."""
        tokens = self._states.all_token_ids.gpu
        newest: list[tuple[int, int]] = []
        for slot, length in wanted:
            request = self._requests[slot]
            if request.history is None:
                everything = tokens[slot, :length].tolist()
                start = int(self._states.prompt_len.np[slot])
                request.begin(everything[:start], everything[start:], self._vocab_size)
            elif length - len(request.history) == 1:
                newest.append((slot, length - 1))
            elif length > len(request.history):
                request.output.extend(tokens[slot, len(request.history) : length].tolist())
        if newest:
            slot, column = to_device(np.array(newest).T, tokens.device)
            for (owner, _), token in zip(newest, tokens[slot, column].tolist(), strict=True):
                self._requests[owner].output.append(token)

    def _new_request(self, params: SamplingParams) -> _Request | None:
        settings = GuidanceSettings.from_args(params.extra_args)
        if settings is None or settings.changes_nothing:
            return None
        try:  # the front end refuses such a request, where it knows the LenVM
            settings.check_model(self._guide.scorer.config)
        except ValueError as error:
            self._error_once(
                f"{error}. Such requests go unguided; start with `lenvm serve`, or name the LenVM "
                "in LENVM_CHECKPOINT, and they are refused."
            )
            return None
        return _Request(next(self._keys), settings, params, self._ends, self._segment)

    def _drop(self, index: int) -> None:
        request = self._requests.pop(index, None)
        if request is not None:
            self._guide.close(request.key)

    def _error_once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            logger.error(sentence)
