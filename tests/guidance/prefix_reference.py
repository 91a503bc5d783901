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
        pages = prefixes.pages[n, : -(-used // PAGE)].long()
        assert prefixes.pages.shape[1] * PAGE == prefixes.max_keys
        assert 0 <= used <= prefixes.max_keys
        assert end - begin <= prefixes.max_queries
        if not used:
            continue
        k, v = (x.unflatten(0, (-1, PAGE))[pages].flatten(0, 1)[:used] for x in (keys, values))
        k, v = k.double(), v.double()
        for q in range(begin, end):
            scores = torch.einsum("hd,khd->hk", query[q].double(), k) * scale
            output[q] = torch.einsum("hk,khd->hd", scores.softmax(-1), v).to(output.dtype)
            lse[q] = scores.logsumexp(-1).float()
    return output, lse
