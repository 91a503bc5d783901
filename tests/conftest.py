"""Settings of all tests, and what many of them take: tiny policies and rollout files."""

import pytest
from hypothesis import settings

FAMILIES = ("qwen2", "qwen3", "llama")

# A busy machine is no failure: examples are not timed.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def tokenizer():
    from tests.tiny import make_tokenizer

    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory):
    """Directory of a tiny random policy, with a tokenizer that has no chat template."""
    from tests.tiny import make_policy, make_tokenizer

    path = tmp_path_factory.mktemp("policy")
    make_policy("llama").save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="session", params=FAMILIES)
def policy_dir(request, tmp_path_factory, tokenizer):
    """Directory of a tiny random policy of each family."""
    from tests.tiny import make_policy

    path = tmp_path_factory.mktemp(request.param)
    make_policy(request.param).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def write(tmp_path):
    """Write rows to a new rollout directory and return its path."""
    from tests.rollouts.rows import write_rows

    return lambda rows, name="rollouts", **settings: write_rows(tmp_path / name, rows, **settings)
