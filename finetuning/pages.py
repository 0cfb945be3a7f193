"""A report as a page: written once, as Markdown for a repository and as HTML that needs nothing from outside.

Texts are taken as they are: whatever a model or a data set says, none of it becomes markup.
"""

import html
from collections.abc import Callable, Sequence
from pathlib import Path

from utils.files import printable, write_atomically

_SPECIAL = "\\`*_[]|#!~"
_STYLE = """
:root { color-scheme: light dark; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
table { display: block; overflow-x: auto; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent); }
th, td { text-align: right; vertical-align: top; }
th:first-child, td:first-child, .text th, .text td { text-align: left; }
img { max-width: 100%; }
""".strip()


class Page:
    """Headings, paragraphs, tables and figures, in order.

    Args:
        title: of the page.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._markdown = [f"# {markdown(title)}"]
        self._html = [f"<h1>{html.escape(title)}</h1>"]
        self._figures: dict[str, bytes] = {}

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._markdown.append(f"## {markdown(text)}")
        self._html.append(f"<h2>{html.escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        """Add a paragraph of plain text."""
        self._markdown.append(markdown(text))
        self._html.append(f"<p>{html.escape(text)}</p>")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], *, is_text: bool = False) -> None:
        """Add a table.

        Args:
            head: titles of the columns.
            rows: a text for each of them.
            is_text: whether it holds sentences, which are set to the left, and not numbers.
        """
        rule = " --- |" if is_text else " ---: |"
        lines = [_row(head, markdown), f"| --- |{rule * (len(head) - 1)}", *(_row(row, markdown) for row in rows)]
        self._markdown.append("\n".join(lines))
        cells = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in head)
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>\n" for row in rows)
        kind = ' class="text"' if is_text else ""
        self._html.append(f"<table{kind}><thead><tr>{cells}</tr></thead><tbody>\n{body}</tbody></table>")

    def figure(self, name: str, svg: bytes, description: str) -> None:
        """Add a figure.

        Args:
            name: of its file beside the page, which ends in .svg.
            svg: its content.
            description: what it shows, for those who cannot see it.
        """
        self._figures[name] = svg
        self._markdown.append(f"![{markdown(description)}]({name})")
        self._html.append(f'<p><img src="{html.escape(name)}" alt="{html.escape(description)}"></p>')

    def coloured(self, pieces: Sequence[tuple[str, float]]) -> None:
        """Add a text in pieces, each on a ground of its own: the larger its number, the stronger; below 0, another."""
        largest = max((abs(number) for _, number in pieces), default=0) or 1
        spans = []
        for piece, number in pieces:
            tone = "217 122 31" if number > 0 else "63 135 217"
            style = f"background: rgb({tone} / {0.7 * abs(number) / largest:.2f})"
            spans.append(f'<span style="{style}" title="{number:+.3f}">{html.escape(piece)}</span>')
        self._markdown.append(f"> {markdown(''.join(piece for piece, _ in pieces))}")
        self._html.append(f"<blockquote>{''.join(spans)}</blockquote>")

    def write(self, folder: Path, name: str = "report") -> None:
        """Write the page as Markdown and as HTML, and its figures beside it."""
        head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        head += f"<title>{html.escape(self.title)}</title>"
        page = f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head><body>\n'
        contents = {
            **self._figures,
            f"{name}.md": ("\n\n".join(self._markdown) + "\n").encode(),
            f"{name}.html": (page + "\n".join(self._html) + "\n</body></html>\n").encode(),
        }
        for file_name, content in contents.items():
            with write_atomically(folder / file_name) as file:
                file.write(content)


def markdown(text: str) -> str:
    """Return a text on one line, so that Markdown shows it as it is."""
    text = html.escape(printable(" ".join(text.split())), quote=False)
    text = "".join(f"\\{character}" if character in _SPECIAL else character for character in text)
    return f"\\{text}" if text[:1] in ("-", "+") else text


def shortened(text: str, length: int) -> str:
    """Return the beginning of a text, on one line, with three dots where something is missing."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _row(cells: Sequence[str], escape: Callable[[str], str]) -> str:
    return f"| {' | '.join(map(escape, cells))} |"
