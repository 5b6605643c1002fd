from collections.abc import Iterator

import pytest

from tests.training.forked import Forked


@pytest.fixture(scope="session")
def forked() -> Iterator[Forked]:
    """Commands as processes, one or several of them, at the price of a fork."""
    forked = Forked()
    yield forked
    forked.close()
