import pytest

from tests.verl.engines import make_lenvm, single_process

single_process()


@pytest.fixture(scope="session")
def lenvm(tmp_path_factory):
    """A random LenVM without gamma, as `lenvm init` leaves it."""
    return make_lenvm(tmp_path_factory.mktemp("lenvm") / "init")
