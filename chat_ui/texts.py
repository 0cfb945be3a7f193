"""Texts that come from outside, made safe to store and to send; they are shown as text, whatever they hold."""

import re

LONGEST_MESSAGE = 20_000  # characters
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # PostgreSQL stores no NUL, and UTF-8 no half of a pair


def clean(text: str) -> str:
    """Return a text with each character that cannot be stored replaced by U+FFFD, and line ends as \\n."""
    return UNSTORABLE.sub("\ufffd", text).replace("\r\n", "\n").replace("\r", "\n")
