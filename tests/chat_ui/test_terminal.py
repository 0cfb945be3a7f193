"""The terminal: a conversation line by line, and text that no terminal obeys."""

import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chat_ui import terminal
from chat_ui.engine import Request, Service
from gpt_model import TextGenerator
from tests.chat_ui.small_runs import loaded, tokenizer, write_classifier, write_run
from utils.files import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "base")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Typed:
    """What a user types, and the requests that come of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.asked: list[Request] = []
        submit = Service.submit

        def noting(service: Service, request: Request) -> Any:
            self.asked.append(request)
            return submit(service, request)

        monkeypatch.setattr(Service, "submit", noting)

    def __call__(self, run: Path, *lines: str, **settings: Any) -> str:
        waiting: Iterator[str] = iter(lines)

        def read(prompt: str) -> str:
            assert prompt == "> "
            try:
                return next(waiting)
            except StopIteration:
                raise EOFError from None

        screen = Terminal()
        with self.monkeypatch.context() as patch:
            patch.setattr("builtins.input", read)
            patch.setattr(sys, "stdout", screen)
            terminal.main(terminal.Config(run=run, **{"temperature": 0, "max_new_tokens": 12, **settings}))
        return screen.getvalue()


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Typed:
    return Typed(monkeypatch)


def test_a_conversation_goes_on(run: Path, typed: Typed) -> None:
    shown = typed(run, "it was", "", "a truth", "/new", "it was", "/again", "/what", "/quit", "never read")
    small = loaded(precise=False)
    writer = TextGenerator(small.model, tokenizer())
    first = writer.generate("it was", temperature=0, max_new_tokens=12)
    second = writer.generate(f"it was{first}\na truth", temperature=0, max_new_tokens=12)
    controls = {**dict.fromkeys(range(32)), **dict.fromkeys(range(127, 160)), ord("\\"): None}
    plain = [text.translate(controls) for text in (first, second, first, first)]
    assert len(typed.asked) == 4
    assert [len(request.prompt.turns) for request in typed.asked] == [1, 3, 1, 1]
    for text in plain:
        for word in text.split("\ufffd"):
            assert word in shown.translate(controls) or len(word) < 4


def test_a_byte_that_is_no_text_does_not_spoil_the_conversation(run: Path, typed: Typed) -> None:
    typed(run, b"typed in Latin-1: \xe4".decode(errors="surrogateescape"), "it was")
    assert [turn.text for turn in typed.asked[-1].prompt.turns][::2] == ["typed in Latin-1: \ufffd", "it was"]


def test_control_characters_are_shown(run: Path, typed: Typed) -> None:
    shown = typed(run, "it was", logit_bias={0x1B: 1e9}, max_new_tokens=3)
    assert shown == "\\x1b\\x1b\\x1b\n\n"


def test_ctrl_c_stops_an_answer_and_not_the_conversation(
    run: Path, typed: Typed, caplog: pytest.LogCaptureFixture
) -> None:
    shown = 0
    show = terminal.show

    def show_three(text: str) -> None:
        nonlocal shown
        shown += 1
        if shown == 4:
            raise KeyboardInterrupt
        show(text)

    typed.monkeypatch.setattr(terminal, "show", show_three)
    caplog.set_level(logging.INFO)
    typed(run, "it was", "a truth", max_new_tokens=200)
    assert "stopped" in caplog.messages
    assert len(typed.asked) == 2


def test_what_cannot_be_talked_to(run: Path, tmp_path: Path) -> None:
    for settings, message in (
        ({}, "either --run with a run directory, or --pretrained with a name"),
        ({"run": run, "pretrained": "gpt2"}, "either --run"),
        ({"pretrained": "gpt3"}, "pretrained must be one of gpt2, gpt2-medium, gpt2-large, gpt2-xl, got 'gpt3'"),
        ({"run": tmp_path}, "is not a run directory"),
        (
            {"run": write_classifier(tmp_path / "mood")},
            "mood writes no text.*: python -m finetuning.classification.predict",
        ),
    ):
        with pytest.raises(InputError, match=message):
            terminal.main(terminal.Config(**settings))
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    with pytest.raises(InputError, match="has no weights that can be used"):
        terminal.main(terminal.Config(run=tmp_path))
