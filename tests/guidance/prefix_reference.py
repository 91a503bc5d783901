"""Attention over prefixes, query by query: what a kernel of `prefix_kernels` must return."""

import torch

from lenvm_rl.guidance.exact.prefix_kernels import PAGE


def reference_kernel(query, keys, values, prefixes, scale, *, empty=torch.inf):
    """As `PrefixKernel`; `empty` is the log-sum-exp over no keys, whose sign kernels differ in."""
    output = torch.zeros_like(query)
    lse = torch.full(query.shape[:2], empty, dtype=torch.float32)
    bounds = prefixes.cu_queries.tolist()
    assert bounds[-1] == len(query)
    for n, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        used = int(prefixes.used[n])
        start = int(prefixes.starts[n])
        assert start % PAGE == prefixes.max_keys % PAGE == 0
        assert 0 <= used <= prefixes.max_keys and start + used <= len(keys)
        assert end - begin <= prefixes.max_queries
        if not used:
            continue
        k, v = (x[start : start + used].double() for x in (keys, values))
        for q in range(begin, end):
            scores = torch.einsum("hd,khd->hk", query[q].double(), k) * scale
            output[q] = torch.einsum("hk,khd->hd", scores.softmax(-1), v).to(output.dtype)
            lse[q] = scores.logsumexp(-1).float()
    return output, lse
