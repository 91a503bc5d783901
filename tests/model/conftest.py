"""A tiny policy of each family on disk, and its tokenizer."""

import pytest

from tests.tiny import FAMILIES, make_policy, make_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session", params=FAMILIES)
def policy_dir(request, tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp(request.param)
    make_policy(request.param).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
