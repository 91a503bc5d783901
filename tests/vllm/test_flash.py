"""Is vLLM's flash attention called as it wants to be? A slow stand-in reads its arguments."""

import ast
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lenvm_rl.guidance.exact.prefix_kernels import PAGE, Prefixes, checked
from lenvm_rl.vllm.internals import VLLM_KERNELS
from tests.guidance.prefix_reference import reference_kernel


@pytest.fixture
def calls(vllm, monkeypatch):
    """vLLM's function played in torch; the arguments must be those of the real one."""
    file = Path(vllm.__file__).with_name("vllm_flash_attn") / "flash_attn_interface.py"
    (real,) = (  # read, not imported: a CPU build has the file and not what it loads
        node
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "flash_attn_varlen_func"
    )
    names = [argument.arg for argument in real.args.args]
    seen = []

    def played(*args, **kwargs):
        assert set(kwargs) <= set(names[len(args) :])
        given = dict(zip(names, args, strict=False)) | kwargs
        seen.append(given)
        assert given["return_softmax_lse"] and not given.get("causal", False)
        pages, used = given["block_table"], given["seqused_k"]
        assert given["k"].shape[1] == PAGE and pages.dtype == used.dtype == torch.int32
        prefixes = Prefixes(
            cu_queries=given["cu_seqlens_q"],
            pages=pages,
            used=used,
            max_queries=given["max_seqlen_q"],
            max_keys=given["max_seqlen_k"],
        )
        keys, values = (given[x].flatten(0, 1) for x in "kv")
        scale = given["softmax_scale"]
        output, lse = reference_kernel(given["q"], keys, values, prefixes, scale)
        return output, lse.T.contiguous()

    fake = SimpleNamespace(flash_attn_varlen_func=played)
    monkeypatch.setitem(sys.modules, "vllm.vllm_flash_attn", fake)
    return seen


def test_it_reproduces_the_small_case(calls):
    make = VLLM_KERNELS["vllm"]
    checked(make(), head_dim=8, dtype=torch.float32, device=torch.device("cpu"))
    assert len(calls) == 1


def test_a_build_without_it_says_so(vllm, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm.vllm_flash_attn", None)
    with pytest.raises(ImportError):
        VLLM_KERNELS["vllm"]()
