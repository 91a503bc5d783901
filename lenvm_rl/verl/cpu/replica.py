"""A rollout engine for verl on transformers alone: `actor_rollout_ref.rollout.name=transformers`.

verl 0.9 samples through asynchronous servers of vLLM, SGLang or TensorRT-LLM. On a CPU this one
stands in for them, under the same configuration keys (temperature, top_p, top_k, n,
response_length, max_model_len, max_num_seqs, dtype, seed).

Standalone it serves a frozen policy's own weights. Beside a policy that is being trained it takes
new weights after every step (`weights`), and draws each completion from (seed, step, prompt,
number of the sample): a run that is resumed samples what an uninterrupted one would have. For
asynchronous trainers it takes them between completions, none of which is cut.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from typing import Any

import ray
import torch
from torch import Tensor
from verl.workers.config import HFModelConfig
from verl.workers.rollout.replica import (
    RolloutMode,
    RolloutReplica,
    RolloutReplicaRegistry,
    TokenOutput,
)

from lenvm_rl.sampling.transformers.sampler import Completion, ContinuousSampler, Request
from lenvm_rl.verl.cpu.weights import load_policy_weights, server_name
from lenvm_rl.verl.plugin import ROLLOUT_NAME

_KNOWN_SETTINGS = {"temperature", "top_p", "top_k", "min_p", "max_tokens", "logprobs"}


class TransformersServer:
    """Ray actor: continuous batching behind verl's `generate` call."""

    def __init__(
        self,
        path: str,
        *,
        dtype: str,
        response_length: int,
        max_model_len: int,
        max_batch: int,
        seed: int,
    ):
        self.sampler = ContinuousSampler.from_pretrained(
            path, dtype=getattr(torch, dtype), device="cpu", max_batch=max_batch, seed=seed
        )
        self.response_length = response_length
        self.max_model_len = max_model_len
        self._seed = seed
        self._step: int | None = None  # of the weights; None while they are the directory's own
        self._drawn: Counter[tuple[int, ...]] = Counter()  # samples per prompt at this step
        self._waiting: list[tuple[str, Request]] = []
        self._futures: dict[str, asyncio.Future[Completion]] = {}
        self._loop: asyncio.Task | None = None
        self._admits = asyncio.Event()
        self._admits.set()

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        """Sample one completion; concurrent calls share the batch."""
        while not self._admits.is_set():
            await self._admits.wait()
        request = self._request(prompt_ids, sampling_params)
        self.sampler.check(request)  # before it joins the batch: an error is this caller's alone
        future = asyncio.get_running_loop().create_future()
        self._futures[request_id] = future
        self._waiting.append((request_id, request))
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._run())
        completion = await future
        return TokenOutput(
            token_ids=completion.token_ids,
            log_probs=completion.logprobs if sampling_params.get("logprobs") else None,
            stop_reason="completed",
            num_preempted=0,
            extra_fields={
                "global_steps": self._step or 0,
                "finish_reason": completion.finish_reason,
            },
        )

    async def load_weights(self, weights: dict[str, Tensor], step: int | None) -> None:
        """Sample from these weights from now on.

        Args:
            weights: the policy's parameters under their Hugging Face names.
            step: the training step they come from.
        Raises:
            ValueError: completions are still being sampled, or the weights are another model's.
        """
        if self._futures:
            raise ValueError(
                f"weights arrived while {len(self._futures)} completions were being sampled: the "
                "transformers rollout engine takes them between completions. Use a trainer mode "
                "that samples first or calls abort_all_requests (sync, colocate_async, lenvm, "
                "lenvm_colocate_async), or roll out with vLLM."
            )
        load_policy_weights(self.sampler.model, weights)
        self._step = step or 0
        self._drawn.clear()

    def _request(self, prompt_ids: list[int], params: dict[str, Any]) -> Request:
        unknown = {
            name: value
            for name, value in params.items()
            if name not in _KNOWN_SETTINGS and not (name == "repetition_penalty" and value == 1.0)
        }
        if unknown:
            raise ValueError(
                f"the transformers rollout engine does not know the sampling settings {unknown}; "
                f"it has {sorted(_KNOWN_SETTINGS)}. Sample with vLLM, or leave them out."
            )
        room = self.max_model_len - len(prompt_ids)
        wanted = params.get("max_tokens") or self.response_length
        return Request(
            prompt_ids=list(prompt_ids),
            max_tokens=max(1, min(wanted, room)),
            temperature=params.get("temperature", 1.0),
            top_p=params.get("top_p", 1.0),
            top_k=params.get("top_k", 0) or 0,
            min_p=params.get("min_p", 0.0),
            seed=None if self._step is None else self._next_seed(tuple(prompt_ids)),
        )

    def _next_seed(self, prompt: tuple[int, ...]) -> int:
        """The random stream of the next sample of `prompt` at this step."""
        identity = (self._seed, self._step, prompt, self._drawn[prompt])
        self._drawn[prompt] += 1
        digest = hashlib.blake2b(repr(identity).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1  # below 2**63

    async def _run(self) -> None:
        """Decode while there is work; the sampler is touched by one thread at a time."""
        try:
            while self._waiting or self.sampler.pending:
                for request_id, request in self._waiting:
                    self.sampler.submit(request, request_id)
                self._waiting.clear()
                for request_id, completion in await asyncio.to_thread(self.sampler.step):
                    self._futures.pop(request_id).set_result(completion)
        except Exception as error:
            # Nobody awaits this task: hand the error to every caller instead of leaving it waiting.
            for future in self._futures.values():
                if not future.done():
                    future.set_exception(error)
            self._futures.clear()

    async def wake_up(self, *args: Any, **kwargs: Any) -> None: ...

    async def sleep(self, *args: Any, **kwargs: Any) -> None: ...

    async def abort_all_requests(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Let what is being sampled end, and hold further requests until `resume_generation`.

        Nothing is cut: completions that start anew would be the long ones, and those that remain
        too short.
        """
        self._admits.clear()
        await asyncio.gather(*self._futures.values(), return_exceptions=True)
        return {"aborted_count": 0, "request_ids": []}

    async def resume_generation(self, *args: Any, **kwargs: Any) -> None:
        """Take requests again."""
        self._admits.set()

    async def clear_kv_cache(self) -> None: ...

    async def release_kv_cache(self) -> None: ...

    async def resume_kv_cache(self) -> None: ...

    async def start_profile(self, **kwargs: Any) -> None: ...

    async def stop_profile(self) -> None: ...


class TransformersReplica(RolloutReplica):
    """One `TransformersServer` as verl's rollout replica, standalone or beside the trainer."""

    async def init_standalone(self) -> None:
        """Start the server; without the weight-receiving workers that verl starts beside it."""
        self.rollout_mode = RolloutMode.STANDALONE
        await self.launch_servers()

    async def launch_servers(self) -> None:
        """Start the Ray actor and publish its handle."""
        config, model = self.config, self._model_config()
        limit = config.max_model_len or config.prompt_length + config.response_length
        server = (
            ray.remote(TransformersServer)
            .options(
                name=server_name(self.replica_rank) if self._takes_weights else None,
                num_cpus=0,
                max_concurrency=self.max_concurrency,
            )
            .remote(
                model.local_path,
                dtype=config.dtype,
                response_length=config.response_length,
                max_model_len=limit,
                max_batch=config.max_num_seqs,
                seed=config.seed + self.replica_rank,
            )
        )
        self.servers = [server]
        self._server_handle = server
        self._server_address = f"{ROLLOUT_NAME}://{self.replica_rank}{self.name_suffix}"

    @property
    def _takes_weights(self) -> bool:
        return self.rollout_mode == RolloutMode.HYBRID

    def _model_config(self) -> HFModelConfig:
        from verl.utils.config import omega_conf_to_dataclass

        return omega_conf_to_dataclass(self.model_config)


RolloutReplicaRegistry.register(ROLLOUT_NAME, lambda: TransformersReplica)
