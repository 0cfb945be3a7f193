"""The stand-in for Modal's servers, one for all tests of a module, and this process signed in to it."""

from collections.abc import Iterator

import pytest

from deployment.stand_in.containers import why_not
from deployment.stand_in.control_plane import ControlPlane


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    if reason := why_not():
        pytest.skip(reason)
    with ControlPlane.signed_in() as plane:
        yield plane
        print(plane.output())  # which pytest shows of a test that fails
