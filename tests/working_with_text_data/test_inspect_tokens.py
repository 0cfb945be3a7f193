"""Tokens made visible: nothing of the text is lost, and no text harms the terminal or the page."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.files import InputError
from working_with_text_data import inspect_tokens
from working_with_text_data.inspect_tokens import Config, Token, to_html, to_terminal, tokenize, visible
from working_with_text_data.minbpe import GPT2Tokenizer, RegexTokenizer, Tokenizer

ROOT = Path(__file__).parents[2]
HOSTILE = [
    "<script>alert('&amp;')</script>", "</div></body>--><!--", '" onclick="x', "שלום עולם \u202egnp.exe\u202c",
    "\r\n\n\r", "\0\x07\x1b[31m\x1b]0;title\x07\x9b31m\x7f", "👩\u200d👩\u200d👧 e\u0301\u0301 \ufe0f\ufeff\uffff",
    "a¦b|c", "<E2><80><U+200B>", "{tokens} %s {0}", "   ", "\t\tx\u2028y\u2029z\x85", "<|endoftext|>", "",
]  # fmt: skip


class Page(HTMLParser):
    """The spans of a page: class, title and content of each; and all other tags."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.spans: list[tuple[str, str, str]] = []
        self.other: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.inside = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "span":
            assert [name for name, _ in attrs] == ["class", "title"]
            self.spans.append((attrs[0][1] or "", attrs[1][1] or "", ""))
            self.inside = True
        else:
            self.other.append((tag, attrs))

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "span"

    def handle_data(self, data: str) -> None:
        if self.inside:
            kind, title, content = self.spans[-1]
            self.spans[-1] = kind, title, content + data


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return GPT2Tokenizer()


@pytest.fixture(scope="module")
def empty_page() -> Page:
    return Page(to_html([], "gpt2"))


def painted(tokens: list[Token]) -> str:
    return to_terminal(((token, visible(token.spelling)) for token in tokens), colors=True, separator="")


def grounds(terminal: str) -> list[str]:
    return re.findall(r"48;5;(\d+)m", terminal)


class TestPage:
    @staticmethod
    def check(tokens: list[Token], text: str, empty_page: Page) -> None:
        page = Page(to_html(tokens, "gpt2"))
        assert page.other == empty_page.other, "the text made a tag"
        found = [(int(title.split(":")[0]), bytes.fromhex(title.split(":")[1])) for _, title, _ in page.spans]
        assert found == [(token.id, token.spelling) for token in tokens]
        assert b"".join(spelling for _, spelling in found).decode() == text
        assert [content for _, _, content in page.spans] == [visible(token.spelling) for token in tokens]

    @pytest.mark.parametrize("text", HOSTILE)
    @pytest.mark.parametrize("special", [False, True])
    def test_hostile_text_comes_back_from_the_spans(
        self, gpt2: Tokenizer, empty_page: Page, text: str, special: bool
    ) -> None:
        self.check(tokenize(gpt2, text, special=special), text, empty_page)

    @given(text=st.text(st.characters(exclude_categories=["Cs"])))
    @settings(deadline=None)
    def test_any_text_comes_back_from_the_spans(self, gpt2: Tokenizer, empty_page: Page, text: str) -> None:
        self.check(tokenize(gpt2, text), text, empty_page)

    def test_plain_text_stands_in_the_page_as_it_is(self, gpt2: Tokenizer) -> None:
        text = "It is a truth <universally> acknowledged,  naïve & café."
        assert "".join(content for _, _, content in Page(to_html(tokenize(gpt2, text), "")).spans) == text

    def test_neighbours_and_special_tokens_look_different_in_light_and_dark(self, gpt2: Tokenizer) -> None:
        page = to_html(tokenize(gpt2, "one two three<|endoftext|>four five six", special=True), "gpt2")
        kinds = [kind for kind, _, _ in Page(page).spans]
        assert all(left != right for left, right in pairwise(kinds))
        assert kinds.count("special") == 1
        for kind in set(kinds):
            assert re.search(rf"\.{kind} {{ background: var\(--{kind}\)", page)
            light, dark = re.findall(rf"--{kind}: #(\w{{6}})", page)
            light_ink, dark_ink = ("ffffff",) * 2 if kind == "special" else re.findall(r"--ink: #(\w{6})", page)
            assert contrast(light, light_ink) >= 4.5  # WCAG 2.1's bound for text
            assert contrast(dark, dark_ink) >= 4.5

    def test_a_page_needs_nothing_from_elsewhere(self, empty_page: Page) -> None:
        assert not {"script", "link", "img"} & {tag for tag, _ in empty_page.other}

    def test_the_name_of_a_tokenizer_file_cannot_break_the_page(self, empty_page: Page) -> None:
        assert Page(to_html([], "<script>.json")).other == empty_page.other


def contrast(first: str, second: str) -> float:
    def luminance(color: str) -> float:
        levels = [int(color[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
        return sum(weight * level for weight, level in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    darker, lighter = sorted([luminance(first), luminance(second)])
    return (lighter + 0.05) / (darker + 0.05)


class TestTerminal:
    @pytest.mark.parametrize("text", HOSTILE)
    def test_nothing_of_the_text_commands_the_terminal(self, gpt2: Tokenizer, text: str) -> None:
        plain = re.sub(r"\x1b\[[\d;]+m", "", painted(tokenize(gpt2, text)))
        assert plain == "".join(visible(token.spelling) for token in tokenize(gpt2, text))
        assert plain.replace("\n", "").isprintable()

    def test_neighbours_have_different_grounds(self, gpt2: Tokenizer) -> None:
        tokens = tokenize(gpt2, "It is a truth universally acknowledged" * 3)
        found = grounds(painted(tokens))
        assert len(found) == len(tokens)
        assert all(left != right for left, right in pairwise(found))

    def test_no_ground_is_on_at_a_line_break(self, gpt2: Tokenizer) -> None:
        assert re.search(r"↵\x1b\[0m\n\x1b\[0?[^\n]*two", painted(tokenize(gpt2, "one\n\ntwo")))
        for line in painted(tokenize(gpt2, "one\n\n\n two\n")).split("\n"):
            assert line.endswith("\x1b[0m") or not line

    def test_special_tokens_look_different_only_if_they_are_let(self, gpt2: Tokenizer) -> None:
        as_text, as_control = (tokenize(gpt2, "a<|endoftext|>", special=special) for special in (False, True))
        assert [token.spelling for token in as_control] == [b"a", b"<|endoftext|>"]
        assert len(as_text) > 2
        assert grounds(painted(as_control))[-1] not in grounds(painted(as_text))

    @pytest.mark.parametrize(
        ("spelling", "shown"),
        [
            (b"\xe2\x80", "<E2><80>"),
            (b" \xf0\x9f", " <F0><9F>"),
            (b"\n\n", "↵\n↵\n"),
            (b"\t\r", "⇥␍"),
            (b"\x1b[0m", "<U+001B>[0m"),
            ("\u202e".encode(), "<U+202E>"),
            ("\u0301".encode(), "<U+0301>"),  # alone it would sit on the letter of the token before
            ("é".encode(), "é"),
        ],
    )
    def test_what_cannot_be_seen_is_written_out(self, spelling: bytes, shown: str) -> None:
        assert visible(spelling) == shown

    @pytest.mark.parametrize(("terminal", "no_color", "colors"), [(True, "", 1), (True, "1", 0), (False, "", 0)])
    def test_colours_are_for_terminals_that_want_them(
        self, terminal: bool, no_color: str, colors: bool,
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
        monkeypatch.setenv("NO_COLOR", no_color)
        inspect_tokens.main(Config(text="Hello world", ids=True))
        output = capsys.readouterr().out
        assert ("\x1b[" in output) == colors
        if not colors:
            assert output.startswith("Hello¦ world\n15496 995\n")


def run(*arguments: object, text: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "working_with_text_data.inspect_tokens", *map(str, arguments)]
    variables = {**os.environ, "PYTHONUTF8": "1", **environment}
    return subprocess.run(command, input=text, capture_output=True, cwd=ROOT, check=False, env=variables)


class TestCommandLine:
    def test_a_text_from_standard_input_keeps_its_line_ends(self) -> None:
        result = run(text=b"Hello\r\nworld")
        assert (
            result.stdout.decode() == "Hello¦␍¦↵\n¦world\ncharacters: 12, bytes: 12, tokens: 4, bytes per token: 3.00\n"
        )
        assert (result.returncode, result.stderr) == (0, b"")

    def test_a_file_and_a_tokenizer_of_ones_own_without_special_tokens(self, tmp_path: Path, persuasion: str) -> None:
        tokenizer = RegexTokenizer()
        tokenizer.train(persuasion[:20_000], 300)
        tokenizer.save(tmp_path / "t.json")
        (tmp_path / "a.txt").write_text("the captain", encoding="utf-8")
        result = run("--tokenizer", tmp_path / "t.json", "--file", tmp_path / "a.txt", "--ids")
        shown, ids, _ = result.stdout.decode().splitlines()
        assert shown.replace("¦", "") == "the captain"
        assert [int(id_) for id_ in ids.split()] == tokenizer.encode("the captain")

    def test_an_empty_text(self) -> None:
        assert run("--text", "").stdout == b"\ncharacters: 0, bytes: 0, tokens: 0\n"

    def test_output_that_cannot_hold_a_character(self) -> None:
        result = run("--text", "é", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
        assert result.stdout.startswith(b"\\xe9\n")

    def test_a_page_is_replaced_only_if_wanted(self, tmp_path: Path) -> None:
        page = tmp_path / "page.html"
        page.write_text("mine")
        result = run("--text", "a", "--html", page)
        assert result.stderr.decode().startswith(f"error: {page} exists")
        with pytest.raises(InputError, match="was not written by this command"):
            inspect_tokens.main(Config(text="a", html=page, overwrite=True))
        assert page.read_text() == "mine"
        page.unlink()
        for text in ("a page", "a"):
            inspect_tokens.main(Config(text=text, html=page, overwrite=True))
        assert len(Page(page.read_text(encoding="utf-8")).spans) == 1

    def test_a_page_is_no_input_and_no_link(self, tmp_path: Path) -> None:
        book = tmp_path / "book.txt"
        book.write_text("a book")
        (tmp_path / "link.html").symlink_to(book)
        for page in (book, tmp_path / "link.html", Path(os.devnull)):
            with pytest.raises(InputError, match="--html"):
                inspect_tokens.main(Config(file=book, html=page, overwrite=True))
        assert book.read_text() == "a book"

    def test_what_might_never_end_is_not_read(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for file in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
            with pytest.raises(InputError, match=f"there is no file {file}"):
                inspect_tokens.main(Config(file=file))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--file", "none.txt"], "there is no file none.txt"),
            (["--file", "."], "there is no file ."),
            (["--tokenizer", "none.json"], "there is no tokenizer none.json: make one with"),
            (["--tokenizer", "pyproject.toml"], "pyproject.toml is damaged: Expecting value"),
            (["--text", "a", "--file", "b"], "there are two texts: give either --text or --file"),
            (["--text", os.fsdecode(b"\xff")], "the text holds a lone surrogate"),
            ([], "standard input is not UTF-8 text: byte 1 is 0xff"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, arguments: list[str], message: str) -> None:
        result = run(*arguments, text=b"x\xff")
        assert (result.returncode, result.stdout) == (1, b"")
        assert result.stderr.decode().startswith(f"error: {message}")
        assert result.stderr.count(b"\n") == 1

    def test_a_reader_that_leaves_early_is_no_error(self) -> None:
        command = [sys.executable, "-m", "working_with_text_data.inspect_tokens"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
        )
        assert process.stdin
        assert process.stdout
        assert process.stderr
        with process:
            process.stdout.close()  # before anything is written: the text is read first
            process.stdin.write(b"one line\n" * 20_000)
            process.stdin.close()
            assert process.stderr.read() == b""
        assert process.returncode == 0

    def test_nothing_heavy_is_imported(self) -> None:
        code = "import sys, working_with_text_data.inspect_tokens; print({'torch', 'transformers'} & set(sys.modules))"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False)
        assert result.stdout.strip() == b"set()"

    def test_an_existing_page_is_found_before_the_text_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "page.html").touch()
        with pytest.raises(InputError, match="exists"):
            inspect_tokens.main(Config(file=tmp_path / "none.txt", html=tmp_path / "page.html"))
