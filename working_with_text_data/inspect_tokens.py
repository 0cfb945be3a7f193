"""Show a text as its tokens, each on a background of its own colour, in the terminal and as an HTML page.

python -m working_with_text_data.inspect_tokens --text "Hello world"
python -m working_with_text_data.inspect_tokens --tokenizer gpt4 --file my_book.txt --html tokens.html
"""

import html
import logging
import os
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from utils.files import InputError, write_atomically
from utils.outputs import check_output_file
from working_with_text_data.minbpe import Tokenizer, open_tokenizer

log = logging.getLogger(__name__)

VISIBLE = {"\n": "↵\n", "\r": "␍", "\t": "⇥"}
SEPARATOR = "¦"  # of tokens, where there are no colours; unlike | it is rare in text and in special tokens

# Pale, under black letters. Of a terminal's 256 colours only the first 16 differ from terminal to terminal.
BACKGROUNDS = [153, 223, 157, 218, 189]
PLAIN = "\x1b[38;5;16;48;5;{}m"
SPECIAL = "\x1b[1;38;5;231;48;5;124m"  # bold and white on red
RESET = "\x1b[0m"

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tokens of {tokenizer}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1a1a1a; --page: #ffffff; --special: #a4161a;
  --t0: #bcdcff; --t1: #ffdcae; --t2: #bdf0c4; --t3: #ffc9d6; --t4: #dfd3ff; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #ececec; --page: #161616; --special: #c9302c;
  --t0: #1d4468; --t1: #664310; --t2: #1f5230; --t3: #6b2c41; --t4: #47387a; }} }}
body {{ margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: var(--page); color: var(--ink);
  font: 1rem/1.7 ui-monospace, monospace; }}
#tokens {{ white-space: break-spaces; overflow-wrap: anywhere; }}
#tokens span {{ padding: 0.1rem 0; border-radius: 0.2rem; unicode-bidi: isolate; }}
.t0 {{ background: var(--t0); }} .t1 {{ background: var(--t1); }} .t2 {{ background: var(--t2); }}
.t3 {{ background: var(--t3); }} .t4 {{ background: var(--t4); }}
#tokens .special {{ background: var(--special); color: #ffffff; font-weight: bold; }}
</style>
</head>
<body>
<p>{tokenizer}: {numbers}. Point at a token to see its id and bytes.</p>
<div id="tokens" dir="ltr">{tokens}</div>
</body>
</html>
"""


@dataclass(frozen=True)
class Config:
    """Show a text as its tokens, each on a background of its own colour, and count them.

    A line break is shown as ↵ before it, a tab as ⇥. Bytes that are only part of a character are shown as
    numbers, such as <E2><80>; so are characters that cannot be seen alone, such as <U+200B>. Where the output is not
    a terminal, or the variable NO_COLOR is set, a ¦ stands between tokens instead of colours.
    """

    tokenizer: Literal["gpt2", "gpt4"] | Path = "gpt2"
    """GPT-2's or GPT-4's tokenizer, or a file that `train_tokenizer` saved."""
    text: str | None = None
    """The text itself."""
    file: Path | None = None
    """A UTF-8 file to read the text from. Without --text and --file it is read from standard input."""
    ids: bool = False
    """Print the ids of the tokens as well."""
    special: bool = False
    """Let special tokens in the text, such as <|endoftext|>, become control tokens, which look different.
    Otherwise they are the plain text that they look like."""
    html: Path | None = None
    """Also write a page that any browser shows; pointing at a token there tells its id and bytes. An
    existing file is kept unless --overwrite is given."""
    overwrite: bool = False
    """Replace an existing page."""


class Token(NamedTuple):
    """One token of a text."""

    id: int
    spelling: bytes
    special: bool


def main(config: Config) -> list[Token]:
    """Print the text, write the page if one is wanted, and return the tokens.

    Raises:
        InputError: for a text or a tokenizer that cannot be read, two texts, or an existing page.
    """
    if config.html:
        inputs = (config.file, Path(config.tokenizer))
        check_output_file(config.html, overwrite=config.overwrite, is_ours=is_page, inputs=inputs, flag="--html")
    tokenizer = open_tokenizer(config.tokenizer)
    tokens = tokenize(tokenizer, read_text(config), special=config.special)
    if config.html:
        with write_atomically(config.html) as file:
            file.write(to_html(tokens, str(config.tokenizer)).encode("utf-8", errors="backslashreplace"))
    colors = sys.stdout.isatty() and not os.environ.get("NO_COLOR")  # https://no-color.org
    lines = [to_terminal(((token, visible(token.spelling)) for token in tokens), colors, "" if colors else SEPARATOR)]
    if config.ids:
        lines.append(to_terminal(((token, str(token.id)) for token in tokens), colors, " "))
    print("\n".join([*lines, count(tokens)]))
    return tokens


def read_text(config: Config) -> str:
    """Return the text that the configuration names, line ends as they are.

    Raises:
        InputError: if it names two, or what it names is not there or not UTF-8.
    """
    if config.text is not None and config.file is not None:
        raise InputError("there are two texts: give either --text or --file")
    if config.text is not None:
        return config.text
    if config.file is not None and not config.file.is_file():  # a device or a pipe might never end
        raise InputError(f"there is no file {config.file}")
    if config.file is None and sys.stdin.isatty():
        log.info("type a text, and end it with Ctrl-D on a line of its own (on Windows Ctrl-Z and Enter)")
    content = sys.stdin.buffer.read() if config.file is None else config.file.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        where = config.file or "standard input"
        raise InputError(f"{where} is not UTF-8 text: byte {error.start:,} is 0x{content[error.start]:02x}") from error


def tokenize(tokenizer: Tokenizer, text: str, *, special: bool = False) -> list[Token]:
    """Return the tokens of a text; special ones in it become control tokens only if `special` says so.

    Raises:
        InputError: for a lone surrogate in the text.
    """
    ids = tokenizer.encode(text, allowed_special="all" if special else (), disallowed_special=())
    specials = set(tokenizer.special_tokens.values())
    return [Token(id_, tokenizer.vocab[id_], id_ in specials) for id_ in ids]


def visible(spelling: bytes) -> str:
    """Return bytes as text in which everything can be seen and nothing can command a terminal.

    b"a\\n" -> "a↵" and a line break; b"\\xe2\\x80" -> "<E2><80>"; b"\\x1b[0m" -> "<U+001B>[0m".
    """
    shown = []
    for character in spelling.decode("utf-8", errors="surrogateescape"):
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:  # where surrogateescape puts a byte that is not UTF-8
            shown.append(f"<{code - 0xDC00:02X}>")
        elif character.isprintable() and (shown or unicodedata.category(character) not in ("Mn", "Me")):
            shown.append(character)
        else:  # invisible, or a token that begins with an accent, which would sit on the token before
            shown.append(VISIBLE.get(character, f"<U+{code:04X}>"))
    return "".join(shown)


def to_terminal(labels: Iterable[tuple[Token, str]], colors: bool, separator: str) -> str:
    """Return each token's label on its background, or without colours; `separator` in between."""
    if not colors:
        return separator.join(label for _, label in labels)
    painted = []
    for i, (token, label) in enumerate(labels):
        background = SPECIAL if token.special else PLAIN.format(BACKGROUNDS[i % len(BACKGROUNDS)])
        # a background still on at a line break would reach to the right margin
        painted.append("\n".join(background + line + RESET if line else "" for line in label.split("\n")))
    return separator.join(painted)


def is_page(path: Path) -> bool:
    """Return whether a file is such a page as `to_html` makes."""
    with path.open("rb") as file:
        return b"\n<title>Tokens of " in file.read(PAGE.index("{tokenizer}"))


def to_html(tokens: list[Token], tokenizer: str) -> str:
    """Return a page that needs no other file."""
    spans = []
    for i, token in enumerate(tokens):
        kind = "special" if token.special else f"t{i % len(BACKGROUNDS)}"
        title = f"{token.id}: {token.spelling.hex(' ')}"
        spans.append(f'<span class="{kind}" title="{title}">{html.escape(visible(token.spelling))}</span>')
    return PAGE.format(tokenizer=html.escape(tokenizer), numbers=count(tokens), tokens="".join(spans))


def count(tokens: list[Token]) -> str:
    """Return the numbers of characters, bytes and tokens, in words."""
    data = b"".join(token.spelling for token in tokens)
    sizes = f"characters: {len(data.decode('utf-8')):,}, bytes: {len(data):,}, tokens: {len(tokens):,}"
    return f"{sizes}, bytes per token: {len(data) / len(tokens):.2f}" if tokens else sizes


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
