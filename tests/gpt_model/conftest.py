"""What holds for all tests of this chapter."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def small_products(one_thread: None) -> None:
    """They are all small here."""
