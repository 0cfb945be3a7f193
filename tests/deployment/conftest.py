"""The stand-in for Modal's servers, one for all tests of a module, and this process signed in to it."""

from collections.abc import Iterator

import pytest

from tests.deployment.containers import why_not


@pytest.fixture(scope="module")
def plane() -> Iterator["ControlPlane"]:  # noqa: F821 - imported only where containers can be made
    if reason := why_not():
        pytest.skip(reason)
    import modal
    from modal.client import _Client

    from tests.deployment.control_plane import ControlPlane

    plane = ControlPlane.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in plane.environment().items():
            patch.setenv(name, value)
        patch.setattr(_Client, "_client_from_env", None)  # the client is made once per process
        yield plane
        with modal.Client.from_env():
            pass  # and it is closed
        print(plane.output())  # which pytest shows of a test that fails
        plane.close()
