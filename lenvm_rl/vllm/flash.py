"""The flash attention that vLLM brings, as a kernel over the LenVM's prefixes.

vLLM's wheels for CUDA have it whatever else is installed, with paged keys and the log-sum-exp.
"""

from __future__ import annotations

from lenvm_rl.guidance.exact.prefix_kernels import PAGE, Kernels, PrefixKernel, page_table


def vllm_kernel() -> PrefixKernel:
    """vLLM's own; ImportError where its build has none."""
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    def attend(query, keys, values, prefixes, scale):
        output, lse = flash_attn_varlen_func(
            query,
            keys.unflatten(0, (-1, PAGE)),
            values.unflatten(0, (-1, PAGE)),
            max_seqlen_q=prefixes.max_queries,
            cu_seqlens_q=prefixes.cu_queries,
            max_seqlen_k=prefixes.max_keys,
            seqused_k=prefixes.used,
            softmax_scale=scale,
            block_table=page_table(prefixes, len(keys)),
            return_softmax_lse=True,
        )
        return output, lse

    return attend


VLLM_KERNELS: Kernels = {"vllm": vllm_kernel}
