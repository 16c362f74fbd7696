"""A network that is small enough to follow every path through it."""

import pytest
from small_city import Small, make_small_city


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The network and its model."""
    return make_small_city(tmp_path_factory.mktemp("small"))
