"""Texts that come from outside, made safe to store and to send; they are shown as text, whatever they hold."""

import re

from utils.files import printable

LONGEST_MESSAGE = 20_000  # characters
JOINER = "\u2060"  # invisible, and no letter
COLONS = re.compile(r"(```.*?(?:```|$)|`[^`\n]*`)|(?<=:)(?=[^\W\d_])", re.DOTALL)  # those before letters, outside code
MARKS = re.compile(r"[\\`*_\[\]<>|~&]")  # what Markdown takes for its own anywhere in a line
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # PostgreSQL stores no NUL, and UTF-8 no half of a pair


def clean(text: str) -> str:
    """Return a text with each character that cannot be stored replaced by U+FFFD, and line ends as \\n."""
    return UNSTORABLE.sub("\ufffd", text).replace("\r\n", "\n").replace("\r", "\n")


def shown(text: str) -> str:
    """Return a model's text as a page gets it: Chainlit's Markdown would take "this" away from "note:this"."""
    return COLONS.sub(lambda found: found[1] or JOINER, text)


def plain(text: str) -> str:
    """Return a text that is no Markdown, on one line, as Markdown that shows it as it is."""
    return MARKS.sub(r"\\\g<0>", printable(" ".join(text.split())))


def said(text: str) -> str:
    """Return the text of which `shown` made what a page got."""
    return text.replace(f":{JOINER}", ":")
