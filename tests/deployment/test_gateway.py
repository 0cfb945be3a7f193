"""The door: tokens that are signed and expire, and guessing that slows down. The gateway itself: test_workspace.py."""

import pytest

from deployment.gateway import MOST_DELAY, Door

PASSWORD = "correct horse battery"


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def door(clock: Clock) -> Door:
    return Door(PASSWORD, hours=12, now=clock)


def test_tokens_expire(door: Door, clock: Clock) -> None:
    token = door.let_in(PASSWORD)
    assert token is not None
    assert door.knows(token)
    clock.now += 12 * 3600 - 1
    assert door.knows(token)
    clock.now += 2
    assert not door.knows(token)


def test_tokens_cannot_be_made_up(door: Door, clock: Clock) -> None:
    expiry, _, signature = door.let_in(PASSWORD).partition(".")
    later = str(int(expiry) + 1)
    for token in (
        "",
        ".",
        f"{later}.{signature}",
        f"{expiry}.",
        f".{signature}",
        f"{expiry}.{signature}0",
        "é.ü",
        "9" * 5000,
    ):
        assert not door.knows(token)
    assert not Door(PASSWORD, 12, now=clock).knows(f"{expiry}.{signature}")  # of another start of the workspace


def test_guessing_slows_down_and_the_owner_gets_in_after_the_delay(door: Door, clock: Clock) -> None:
    guesses = 0
    until = clock.now + 48 * 3600
    while clock.now < until:
        assert door.let_in(f"guess {guesses}") is None
        guesses += 1
        clock.now += max(door.wait(), 0.001)
    assert 1100 < guesses < 48 * 61  # in two days; 2.0**1024 would no longer be a number
    assert door.let_in("guess") is None
    assert 0 < door.wait() <= MOST_DELAY
    assert door.let_in(PASSWORD) is None  # nobody is looked at meanwhile
    clock.now += MOST_DELAY
    assert door.let_in(PASSWORD)
    assert door.let_in("wrong once") is None
    assert not door.wait()  # and everything is forgotten


def test_a_short_password_is_none() -> None:
    for password in ("", "eleven char"):
        with pytest.raises(ValueError, match="at least 12 characters"):
            Door(password, 12)
