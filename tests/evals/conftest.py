"""A tiny random policy on disk, with a tokenizer that has no chat template."""

import pytest

from tests.tiny import make_policy, make_tokenizer


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy")
    make_policy("llama").save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path
