"""Parts of documents that can be encoded one by one: no token spans the place where one ends and the next begins.

A file is read a megabyte at a time, and a megabyte may end inside a word. Here each end is moved back to the
last place where the tokenizer's pattern surely ends a piece, and what follows goes to the next part.

A piece may also go on for the whole file: millions of spaces, or letters without a break. It is cut anywhere, and each
of its parts but the last says that it goes on. One encoder then has to read them one after another.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

import numpy as np
import regex

from utils.files import InputError
from working_with_text_data.minbpe import RegexTokenizer, Tokenizer
from working_with_text_data.minbpe.fast.long_pieces import PieceEncoder
from working_with_text_data.minbpe.regex import CUTS
from working_with_text_data.minbpe.unicode_classes import compile_pattern
from working_with_text_data.text_files import Part

PART_LENGTH = 2**20  # characters, about, where there are places to cut
LOOK_AHEAD = 3  # characters after a piece that tell where it ends: an apostrophe alone, or the piece "'ll"


def at_sure_cuts(parts: Iterable[Part], tokenizer: Tokenizer) -> Iterator[Part]:
    """Yield the same text in the tokenizer's normal form, in parts that give a document's ids one by one.

    A document in which there is no place to cut comes whole with a tokenizer whose pattern is not one of ours.

    Args:
        parts: documents in order, as `split_documents` yields them.
        tokenizer: what is to encode them.
    """
    cutter = _Cutter(tokenizer)
    for _, document in groupby(parts, key=lambda part: (part.document, part.split)):
        waiting: list[str] = []
        n_waiting = n_tried = 0
        for part in _normalized(document, tokenizer):
            waiting.append(part.text)
            n_waiting += len(part.text)
            if n_waiting > max(PART_LENGTH, 2 * n_tried):  # twice, so that the time stays linear without any cut
                for text, goes_on in cutter.cut(_joined(waiting), is_all=False):
                    yield part._replace(text=text, goes_on=goes_on)
                n_waiting = n_tried = len(cutter.text)
        for text, goes_on in cutter.cut(_joined(waiting), is_all=True):
            yield part._replace(text=text, goes_on=goes_on)


def _joined(texts: list[str]) -> str:
    """Return the texts as one, and empty the list: a text without any place to cut should not be there twice."""
    text = "".join(texts)
    texts.clear()
    return text


class _Cutter:
    """Cuts documents that come bit by bit.

    Attributes:
        text: what has come of a document and is not cut off yet.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.text = ""
        self._tokenizer = tokenizer
        is_known = isinstance(tokenizer, RegexTokenizer) and tokenizer.pattern in CUTS
        self._pattern = compile_pattern(tokenizer.pattern) if is_known else None
        # what was cut off of the piece that `text` goes on with, as short as it makes no difference to the pattern:
        # its first three characters and its last one; empty if `text` begins a piece
        self._inside = ""
        self._packed: list[bytes] = []  # what came after `text`, as long as it is white space without a line end
        self._following = ""  # stands for all that follows, if what is in `text` depends on it

    def cut(self, more: str, is_all: bool) -> Iterator[tuple[str, bool]]:
        """Yield in order what surely can be cut off, each with whether its piece goes on after it.

        To GPT-4's pattern a line end and the white space after it are one piece if there is another line end in it,
        else two, and until then nothing is sure. White space packs well.

        Args:
            more: what comes next of the document.
            is_all: with it the document ends.
        """
        is_undecided = self._pattern and len(self.text) > PART_LENGTH
        if is_undecided and not is_all and regex.fullmatch(r"[^\S\r\n]*", more):
            self._packed.append(zlib.compress(more.encode("utf-8")))
            return
        if self._packed:
            space = regex.match(r"\s*", more).group()
            self._following = "\n" if {*"\r\n"} & {*space} or (is_all and space == more) else "x"
        while self._packed:
            self.text += zlib.decompress(self._packed.pop(0)).decode("utf-8")
            yield from self._cut(is_all=False)
        self._following = ""
        self.text += more
        yield from self._cut(is_all)

    def _cut(self, is_all: bool) -> Iterator[tuple[str, bool]]:
        if self._inside:
            yield from self._cut_piece(*self._first_piece(is_all))
            if self._inside:
                return
        *parts, rest = self._tokenizer.split_for_workers(self.text, PART_LENGTH)
        while parts:  # each is given away, not kept while it is encoded
            self.text = parts.pop(0)
            yield from self._cut_unit(is_all=True)
        self.text = rest
        yield from self._cut_unit(is_all)

    def _cut_unit(self, is_all: bool) -> Iterator[tuple[str, bool]]:
        """Yield `text`, in which no two bytes tell of a cut, in as many parts as its pieces allow."""
        while self._pattern and len(self.text) > PART_LENGTH:
            end, is_end = self._first_piece(is_all)
            if end > PART_LENGTH:
                yield from self._cut_piece(end, is_end)
                if self._inside:
                    return
                continue
            end = self._end_of_pieces() or (end if is_end else 0)
            if not end:
                break
            yield self.text[:end], False
            self.text = self.text[end:]
        if is_all and self.text:
            yield self.text, False
            self.text = ""

    def _cut_piece(self, end: int, is_end: bool) -> Iterator[tuple[str, bool]]:
        """Yield the first `end` characters of `text`, all of one piece, which goes on if that is not its end."""
        for start in range(0, end, PART_LENGTH):
            stretch = self.text[start : min(start + PART_LENGTH, end)]
            yield stretch, not is_end or start + PART_LENGTH < end
        if is_end and not end:
            yield "", False
        begun = self._inside + self.text[:end]
        self._inside = "" if is_end else begun[:3] + begun[3:][-1:]
        self.text = self.text[end:]

    def _first_piece(self, is_all: bool) -> tuple[int, bool]:
        """Return how many characters of `text` surely belong to its first piece, and whether it surely ends there."""
        assert self._pattern
        text = self._inside + self.text
        end = self._pattern.match(text + self._following).end()
        is_end = is_all or end <= len(text + self._following) - LOOK_AHEAD
        if not is_end and not self._following and text[-1].isspace():  # what it belongs to depends on what follows
            end = self._pattern.match(text + "x").end()
        return min(end, len(text)) - len(self._inside), is_end

    def _end_of_pieces(self) -> int:
        """Return an end of pieces in `text` where it can be cut, if there is one before a piece that is too long."""
        assert self._pattern
        cut = 0
        for piece in self._pattern.finditer(self.text):
            if piece.end() - piece.start() > PART_LENGTH or piece.end() > len(self.text) - LOOK_AHEAD:
                break
            if not self.text[piece.end() - 1].isspace():  # pieces of white space depend on whether a text ends there
                cut = piece.end()
        return cut


def encoding_where_cut(tokenizer: Tokenizer) -> Callable[[Part], str | np.ndarray]:
    """Return a function to take parts in order: it gives their text, or ids where a piece goes on from part to part."""
    encoder: PieceEncoder | None = None
    goes_on = False

    def text_or_ids(part: Part) -> str | np.ndarray:
        nonlocal encoder, goes_on
        if not goes_on and not part.goes_on:
            return part.text
        goes_on = part.goes_on
        encoder = encoder or PieceEncoder(tokenizer.ranks, tokenizer.vocab, _look_ahead(tokenizer))
        return np.array(encoder.encode(part.text.encode("utf-8"), goes_on), dtype=tokenizer.array_dtype)

    return text_or_ids


def _look_ahead(tokenizer: Tokenizer) -> float:
    """Return how many bytes after a token decide whether it is one: see `long_pieces.py`."""
    try:
        tokenizer.merges  # noqa: B018 - found out here of a tokenizer that comes as ranks
    except InputError:
        return math.inf
    return sum(len(token) for token in tokenizer.ranks if len(token) > 1)


def _normalized(document: Iterable[Part], tokenizer: Tokenizer) -> Iterator[Part]:
    """Bring one document's parts into the tokenizer's normal form, as if it were done with the whole.

    A character may combine with those before it, unless it is an ASCII character: there a part may begin.
    """
    if tokenizer.normalization is None:
        yield from document
        return
    waiting: list[str] = []
    for part in document:
        at = next((i for i in range(len(part.text) - 1, -1, -1) if part.text[i].isascii()), None)
        if at is None:
            waiting.append(part.text)
            continue
        yield part._replace(text=tokenizer.normalize("".join([*waiting, part.text[:at]])))
        waiting = [part.text[at:]]
    yield part._replace(text=tokenizer.normalize("".join(waiting)))
