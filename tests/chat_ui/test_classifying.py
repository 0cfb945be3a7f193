"""Classifiers in the chat: a run of the real trainer, read by the real engine, without a page."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chat_ui.classifying import MOST_CLASSES, Classifying, as_markdown
from chat_ui.engine import BusyError, Models, Opinion, Options, Request, Service
from chat_ui.engine import service as service_module
from chat_ui.engine.classifying import weightiest
from chat_ui.texts import plain
from finetuning.classification import train
from finetuning.instruction.conversation import Conversation
from gpt_model import Sampling
from tests.chat_ui.small_runs import write_classifier, write_run
from tests.finetuning.classification.test_train import write_reviews
from utils.files import InputError

EVIL = "<b>*x*</b> | [y](z)\n# w"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, finished_run: Path, one_thread: None) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    reviews = write_reviews(folder / "reviews.csv")
    assert train.main(
        train.Config(
            base=finished_run, data=reviews, out=folder / "reviews", epochs=8, batch_size=16, lr=3e-3, device="cpu",
            precision="float32", eval_every=10, most_tokens=32,
        )
    )  # fmt: skip
    write_run(folder / "base")
    write_classifier(folder / "evil", ["good", EVIL])
    return folder


@pytest.fixture
def service(runs: Path) -> Iterator[Service]:
    with Service(Models(runs, gpt2=False), Options(rows=2, queue=1, prefix_mib=0)) as made:
        yield made


async def answer(service: Service, name: str, text: str, **settings: Any) -> Classifying:
    """Return what the page would get."""
    writing = Classifying(name, name, 1_000_000)

    async def ignore(*piece: str) -> None:
        pass

    request = Request(name, Conversation.ask("dull").then("assistant", "no").then("user", text))
    await writing.run(service, request, wrote=ignore, changed=ignore, **settings)
    return writing


def test_a_trained_run_says_what_it_thinks(service: Service) -> None:
    async def ask() -> None:
        good, bad = [await answer(service, "reviews", f"that was {word} in the hall") for word in ("great", "dull")]
        assert good.text.startswith("**good**, ")
        assert bad.text.startswith("**bad**, ")
        assert good.text.index("| good | ") < good.text.index("| bad | ")
        assert "great" in good.text.splitlines()[-1]  # the words that weighed most
        assert good.reason == "stop"
        assert good.figures[0].endswith(" tokens read")
        assert good.figures[2] == "1 MB of weights"
        long = await answer(service, "reviews", "that was great " * 500)  # it cuts texts itself
        assert long.figures[0] == "32 tokens read"

    asyncio.run(ask())
    assert service.status().loaded == ("reviews",)


def test_names_of_classes_and_words_are_no_markdown(service: Service) -> None:
    shown = r"\<b\>\*x\*\</b\> \| \[y\](z) # w"
    assert plain(EVIL) == shown
    text = asyncio.run(answer(service, "evil", "it was")).text
    assert f"| {shown} | " in text
    assert len(text.splitlines()) in (6, 8)  # a line for each class, and one for words if there are any


def test_many_classes() -> None:
    opinion = Opinion(tuple((f"class {n}", 1 / 40) for n in range(40)), (), 3)
    text = as_markdown(opinion)
    assert text.splitlines()[-1] == f"| {40 - MOST_CLASSES} more | 50.0% |"


def test_words_are_put_together_from_tokens() -> None:
    pieces = [("un", 1.0), ("forget", 1.5), ("table", -0.5), (",", 9.0), (" not", -3.0), (" g", 0.5), ("ood", 0.5)]
    assert weightiest([*pieces, (".", 0.0), (" good", 2.0), (" caf", 5.0), ("\ufffd", 5.0)]) == (
        "good",
        "unforgettable",
    )


def test_what_goes_wrong_is_told(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(name: str, **settings: Any) -> Classifying:
        return await answer(service, name, "great", **settings)

    assert asyncio.run(ask("base")).error == "base is not a classifier"
    assert "there is no model 'x'" in asyncio.run(ask("x")).error
    refused = asyncio.run(ask("reviews", refuse=lambda text: "no" if "good" in text else None))
    assert (refused.text, refused.error) == ("", "The content filter has removed this answer.")

    def fail(*arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(service_module, "opinion_of", fail)
    assert asyncio.run(ask("reviews")).error == "a bug"
    with pytest.raises(InputError, match="reviews writes no text"):
        service.submit(Request("reviews", "great"))
    with pytest.raises(InputError, match="reviews writes no text"):
        Service(service.models, fallback="reviews")


def test_texts_wait_for_each_other_and_can_be_stopped(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, read = threading.Event(), []

    def slowly(classifier: object, text: str) -> Opinion:
        assert go_on.wait(60)
        read.append(text)
        return Opinion((("good", 1.0),), (), 1)

    monkeypatch.setattr(service_module, "opinion_of", slowly)

    async def ask() -> None:
        first = service.classify("reviews", "first")
        writing = Classifying("reviews", "reviews")

        async def ignore(*piece: str) -> None:
            pass

        request = Request("reviews", Conversation.ask("second"))
        second = asyncio.create_task(writing.run(service, request, wrote=ignore, changed=ignore))
        while writing.answer is None:
            await asyncio.sleep(0)
        with pytest.raises(BusyError, match="too many people are waiting"):
            service.classify("reviews", "third")
        writing.stop()
        await second
        assert (writing.reason, writing.text) == ("cancelled", "")
        go_on.set()
        assert (await asyncio.wrap_future(first)).n_tokens == 1

    asyncio.run(ask())
    assert read == ["first"]
    asyncio.run(service.drain(0))
    with pytest.raises(BusyError, match="shutting down"):
        service.classify("reviews", "late")


def test_a_model_that_leaves_memory_for_a_classifier_is_let_go(runs: Path) -> None:
    async def ask() -> None:
        await service.submit(Request("base", "it was", Sampling(max_new_tokens=1))).results()
        assert service._scheduler.lanes["base"].batch is not None
        assert (await answer(service, "evil", "it was")).reason == "stop"
        assert service.status().loaded == ("evil",)
        async with asyncio.timeout(60):
            while service._scheduler.lanes["base"].batch is not None:
                await asyncio.sleep(0.001)

    with Service(Models(runs, gpt2=False, memory=1), Options(rows=1, prefix_mib=0)) as service:
        asyncio.run(ask())
