"""The whole flow in a real browser, with the real server, engine and history; one launch, many looks."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from chat_ui.accounts import Accounts
from chat_ui.texts import JOINER
from tests.chat_ui.small_runs import write_classifier
from tests.ports import free_port
from tests.tiny_run import tiny, train_silently
from working_with_text_data.minbpe import Tokenizer

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
ROOT = Path(__file__).parents[2]
EVIL = """<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">
<iframe srcdoc="<script>parent.hacked = 1</script>"></iframe>

[a link](javascript:window.hacked=1) and ![a picture](https://evil.example/p.png) at 10:30, said :nobody.

```python
def f(x: int) -> int:
    return x
```"""
MOODS = ["*good*", '<img src=x onerror="window.hacked = 1">']

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no /usr/bin/chromium"),
]


class Server:
    """The server's process, which can be killed and started again."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.arguments = arguments
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "chat_ui.server", "--port", str(self.port), "--no-gpt2", *self.arguments]
        command += ["--runs", str(self.folder / "runs"), "--state", str(self.folder / "state")]
        environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        for _ in range(1200):
            try:
                httpx.get(f"{self.base}/ready").raise_for_status()
                return
            except httpx.HTTPError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.1)
        raise AssertionError("it did not start within two minutes")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(120)

    def wait_until_saved(self, thread: str) -> None:
        """Wait until something of the last answer of a thread is in the history."""
        end = time.monotonic() + 60
        wanted = "thread_id = ? AND type = 'assistant_message' AND trim(output) <> ''"
        with closing(sqlite3.connect(self.folder / "state" / "history.sqlite")) as database:
            while database.execute(f"SELECT id FROM steps WHERE {wanted}", [thread]).fetchone() is None:
                assert time.monotonic() < end, "nothing was saved within a minute"
                time.sleep(0.05)

    def say(self, thread: str, text: str) -> None:
        """Make the last answer of a thread say something, as if the model had."""
        with closing(sqlite3.connect(self.folder / "state" / "history.sqlite")) as database, database:
            wanted = "thread_id = ? AND type = 'assistant_message' ORDER BY created_at DESC LIMIT 1"
            (step,) = database.execute(f"SELECT id FROM steps WHERE {wanted}", [thread]).fetchone()
            database.execute("UPDATE steps SET output = ? WHERE id = ?", [text, step])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("chat")
    # a model that hardly knows anything, but is large enough to be stopped while it talks
    size = {"d_model": 512, "n_layers": 12, "n_heads": 4, "context_length": 128}
    train_silently(tiny(data, folder / "runs" / "austen", steps=1, eval_blocks=1, **size))
    never_end(folder / "runs" / "austen")
    shutil.copytree(folder / "runs" / "austen", folder / "runs" / "emma")
    write_classifier(folder / "runs" / "mood", MOODS)
    Accounts(folder / "state" / "accounts.json").add("ada", "correct horse")
    server = Server(folder)
    yield server
    server.kill()


def never_end(run: Path) -> None:
    """Call the end of a text something else, so that answers go on until they are stopped, or as long as may be."""
    config = json.loads((run / "config.json").read_bytes())
    del config["tokenizer"]  # the checksum of the one that it was trained with
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = Tokenizer.load(run / "bpe.json")
    end = tokenizer.special_tokens.pop("<|endoftext|>")
    del tokenizer.vocab[end]
    tokenizer.add_special_tokens({"<|no_end|>": end})
    tokenizer.save(run / "bpe.json")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield opened
        opened.close()


class Window:
    """A page, and what was asked of it."""

    def __init__(self, browser: Any, base: str, **settings: Any) -> None:
        self.context = browser.new_context(accept_downloads=True, **settings)
        self.context.set_default_timeout(60_000)  # on a machine that others use too
        self.page = self.context.new_page()
        self.elsewhere: list[str] = []
        self.errors: list[str] = []
        here = (base, base.replace("http", "ws"), "data:", "blob:", "about:")
        self.context.on("request", lambda sent: None if sent.url.startswith(here) else self.elsewhere.append(sent.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def send(self, text: str) -> None:
        self.page.click("#chat-input")
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")

    def ask(self, text: str) -> None:
        n_answers = self.page.locator(".answer-figures").count()
        self.send(text)
        self.finished(n_answers + 1)

    def finished(self, n_answers: int) -> None:
        self.page.wait_for_function(f"document.querySelectorAll('.answer-figures').length >= {n_answers}")
        self.page.wait_for_selector("#stop-button", state="detached")

    def stop(self) -> None:
        """Stop the answer, without waiting until a busy machine has drawn the button."""
        self.page.locator("#stop-button").dispatch_event("click")

    def answers(self) -> list[str]:
        return self.page.locator('[data-step-type="assistant_message"] .message-content').all_inner_texts()

    def choose(self, picker: str, name: str) -> None:
        self.page.click(f"#mode-picker-trigger-{picker}")
        self.page.locator(f"#mode-picker-popover-{picker}").get_by_text(name, exact=True).click()

    def shows_dark(self) -> bool:
        return self.page.evaluate("document.documentElement.classList.contains('dark')")

    def download(self, kind: str) -> str:
        with self.page.expect_download() as download:
            self.page.locator(f'a[href$=".{kind}"]').last.click()
        return Path(download.value.path()).read_text(encoding="utf-8")


def test_the_whole_flow(server: Server, browser: Any) -> None:
    window = Window(browser, server.base, viewport={"width": 1280, "height": 850}, color_scheme="light")
    page = window.page
    log_in(window, server)
    assert not window.shows_dark()
    page.wait_for_selector("#starter-say-hello")

    settings(window)
    window.send("Emma was")  # streams, and stops
    window.stop()
    window.finished(1)
    assert "stopped" in page.locator(".answer-figures").inner_text()

    page.click(".answer-regenerate")
    page.wait_for_selector("#stop-button")
    window.stop()
    window.finished(1)
    assert len(window.answers()) == 1

    edit(window)
    compare(window)
    thread = page.url.rsplit("/", 1)[1]
    exported = json.loads(window.download("json"))
    assert [message.get("text") for message in exported["messages"]] == [
        "Mr. Knightley",
        None,
        "The next morning",
        None,
    ]
    assert "> The next morning" in window.download("md")

    server.say(thread, EVIL)
    answers = window.answers()
    page.reload()  # and resume
    page.wait_for_selector(".compare")
    assert len(window.answers()) == len(answers)
    page.wait_for_selector("text=onerror")
    page.wait_for_selector(".hljs-keyword")
    page.locator("a", has_text="a link").click()
    assert page.evaluate("window.hacked") is None
    assert "said :nobody." in window.answers()[-1].replace(JOINER, "")
    assert page.locator("iframe, a[href^=javascript]").count() == 0
    page.locator(".compare-choose").nth(1).wait_for()

    killed(window, server)
    classify(window)
    assert [url for url in window.elsewhere if "evil.example" not in url] == []
    assert window.errors == []
    dark_and_small(browser, server, thread, window.context.storage_state())


def log_in(window: Window, server: Server) -> None:
    page = window.page
    page.goto(server.base)
    page.fill("#email", "ada")
    page.fill("#password", "wrong")
    page.click("button[type=submit]")
    page.wait_for_selector("text=Unable to sign in")
    page.fill("#password", "correct horse")
    page.click("button[type=submit]")
    page.wait_for_selector("#mode-picker-trigger-model")


def settings(window: Window) -> None:
    """The longest answer, from a model that is chosen."""
    page = window.page
    window.choose("model", "austen")
    page.click("#chat-settings-open-modal")
    slider = page.locator("#chat-settings [role=slider]").nth(4)
    slider.focus()
    page.keyboard.press("End")
    page.click("#confirm")
    page.wait_for_selector("#chat-settings", state="detached")


def edit(window: Window) -> None:
    page = window.page
    page.hover('[data-step-type="user_message"]')
    page.click(".edit-message")
    page.fill("#edit-chat-input", "Mr. Knightley")
    page.click(".confirm-edit")
    page.wait_for_selector("#stop-button")
    page.wait_for_function("document.querySelectorAll('[data-step-type=assistant_message]').length == 1")
    page.reload()  # in the middle of the answer, which goes on
    page.wait_for_selector("#stop-button")
    window.stop()
    window.finished(1)
    assert page.locator('[data-step-type="user_message"]').inner_text() == "Mr. Knightley"


def wait_for_sides(page: Any, where: str) -> None:
    """Wait until the boxes of two answers, a and b, lie so: the page makes them anew when they are complete."""
    boxes = "[...document.querySelectorAll('.compare-side')].map(side => side.getBoundingClientRect())"
    page.wait_for_function(f"() => {{ const [a, b] = {boxes}; return b && {where} }}")


def compare(window: Window) -> None:
    page = window.page
    window.choose("compare", "and emma")
    window.send("The next morning")
    page.wait_for_selector(".compare")
    streaming = "[...document.querySelectorAll('.compare-text')].every(side => side.innerText.length > 20)"
    page.wait_for_function(streaming)
    window.stop()
    window.finished(3)
    wait_for_sides(page, "a.top === b.top && a.right < b.left")
    page.locator(".compare-choose").nth(1).click()
    page.wait_for_selector(".compare-choose:disabled:has-text('The conversation goes on')")


def killed(window: Window, server: Server) -> None:
    """In the middle of an answer; the page comes back by itself, with what was written."""
    page = window.page
    page.click("#new-chat-button")
    page.wait_for_selector("#starter-say-hello")
    settings(window)
    window.send("Before the end")
    page.wait_for_selector('[data-step-type="assistant_message"]')
    page.wait_for_url("**/thread/*")
    server.wait_until_saved(page.url.rsplit("/", 1)[1])
    server.kill()
    server.start()
    page.reload()
    page.wait_for_selector('[data-step-type="assistant_message"]')
    page.wait_for_selector(".answer-figures:has-text('stopped')")
    assert window.answers()[-1].strip()
    page.click(".answer-regenerate")
    page.wait_for_selector("#stop-button")
    window.stop()
    window.finished(1)


def classify(window: Window) -> None:
    """A classifier answers with a table; the names of its classes are text."""
    window.choose("model", "mood")
    window.ask("How lovely!")
    assert sorted(window.page.locator("td").all_inner_texts()[::2]) == MOODS
    assert window.page.evaluate("window.hacked") is None


def dark_and_small(browser: Any, server: Server, thread: str, state: Any) -> None:
    """A phone, whose owner likes it dark."""
    window = Window(
        browser, server.base, viewport={"width": 360, "height": 700}, color_scheme="dark", storage_state=state
    )
    page = window.page
    page.goto(f"{server.base}/thread/{thread}")
    page.wait_for_selector(".compare")
    assert window.shows_dark()
    wait_for_sides(page, "a.bottom <= b.top")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("#chat-submit").bounding_box()["x"] < 330
    page.click("#theme-toggle")
    page.get_by_role("menuitem", name="Light").click()
    page.wait_for_function("!document.documentElement.classList.contains('dark')")
    assert server.end() == 0
