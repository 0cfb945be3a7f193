"""Parts of documents that can be encoded one by one: no token spans the place where one ends and the next begins.

A file is read a megabyte at a time, and a megabyte may end inside a word. Here each end is moved back to the
last place where the tokenizer's pattern surely ends a piece, and what follows goes to the next part.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby

from working_with_text_data.minbpe import Tokenizer
from working_with_text_data.text_files import Part

PART_LENGTH = 2**20  # characters, about, where there are places to cut


def at_sure_cuts(parts: Iterable[Part], tokenizer: Tokenizer) -> Iterator[Part]:
    """Yield the same text in the tokenizer's normal form, in parts that give a document's ids one by one.

    A document in which there is no place to cut comes whole; so does each with a tokenizer that knows of none.

    Args:
        parts: documents in order, as `split_documents` yields them.
        tokenizer: what is to encode them.
    """
    for _, document in groupby(parts, key=lambda part: (part.document, part.split)):
        waiting: list[str] = []
        n_waiting = n_tried = 0
        for part in _normalized(document, tokenizer):
            waiting.append(part.text)
            n_waiting += len(part.text)
            if n_waiting > max(PART_LENGTH, 2 * n_tried):  # twice, so that the time stays linear without any cut
                *ready, rest = tokenizer.split_for_workers(_joined(waiting), PART_LENGTH)
                while ready:  # each is given away, not kept while it is encoded
                    yield part._replace(text=ready.pop(0))
                waiting.append(rest)
                n_waiting = n_tried = len(rest)
        ready = [*tokenizer.split_for_workers(_joined(waiting), PART_LENGTH)]
        while ready:
            yield part._replace(text=ready.pop(0))


def _joined(texts: list[str]) -> str:
    """Return the texts as one, and empty the list: a text without any place to cut should not be there twice."""
    text = "".join(texts)
    texts.clear()
    return text


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
