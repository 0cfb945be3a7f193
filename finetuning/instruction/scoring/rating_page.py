"""The page on which people mark answers: plain HTML forms from Python's own web server, on this machine alone.

There is no script on the page, and nothing from elsewhere: the browser is told to load and send nothing but this
page's own form. All texts are escaped, since models say what they like.

A web page elsewhere could make a browser send marks here. So requests whose `Host` or `Origin` is another than this
server's are refused.
"""

import html
import logging
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from finetuning.instruction.scoring.study import CRITERIA, HIGHEST, LOWEST, Study, check_name
from utils.files import InputError

log = logging.getLogger(__name__)

LARGEST_FORM = 100_000  # bytes
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
STYLE = """
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
body { max-width: 75rem; margin: 1rem auto; padding: 0 1rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; padding: .6rem .8rem; border-radius: .4rem;
  background: color-mix(in srgb, currentColor 8%, transparent); }
.answers { display: flex; flex-wrap: wrap; gap: 1rem; }
section { flex: 1 1 20rem; }
fieldset { border: 0; padding: .3rem 0; margin: 0; }
legend { padding: 0; }
small { opacity: .8; }
label { margin-right: .8rem; }
button, input[type=text] { font: inherit; padding: .4rem 1rem; }
.problem { color: #c33; font-weight: 600; }
""".strip()


class RatingServer(ThreadingHTTPServer):
    """Serves a study on loopback.

    Args:
        study: what is marked.
        port: 0 takes any that is free.

    Raises:
        InputError: if the port is taken.
    """

    daemon_threads = True

    def __init__(self, study: Study, port: int = 0) -> None:
        self.study = study
        self.writing = threading.Lock()
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise InputError(f"port {port} cannot be used: {error.strerror}; choose another --port") from error

    @property
    def url(self) -> str:
        """The address to open."""
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: RatingServer
    timeout = 30  # seconds; a browser that has opened a connection and says nothing holds a thread

    def do_GET(self) -> None:
        """Show the style, the question about the name, the next question, or thanks."""
        if not self._is_ours():
            return
        address = urlsplit(self.path)
        if address.path == "/style.css":
            self._send(HTTPStatus.OK, STYLE, {"Content-Type": "text/css; charset=utf-8"})
        elif address.path != "/":
            self._send(HTTPStatus.NOT_FOUND, _page("Not found", "<p>There is nothing here.</p>"))
        else:
            self._show({name: values[-1] for name, values in parse_qs(address.query).items()})

    def do_POST(self) -> None:
        """Take marks, and go on with the next question."""
        if not self._is_ours():
            return
        size = self.headers.get("Content-Length", "")
        if self.path != "/marks" or not size.isdecimal() or int(size) > LARGEST_FORM:
            self.close_connection = True
            self._send(HTTPStatus.BAD_REQUEST, _page("Not understood", "<p>This is not the form of this page.</p>"))
            return
        body = self.rfile.read(int(size)).decode("utf-8", errors="replace")
        form = {name: values[-1] for name, values in parse_qs(body, keep_blank_values=True).items()}
        study = self.server.study
        try:
            rater = check_name(form.get("rater", ""))
            question = int(form.get("question", ""))
            if not 0 <= question < len(study.questions):
                raise InputError(f"there is no question {question}")
            models = study.blinded(rater, question)
            marks: dict[str, dict[str, Any]] = {
                model: {criterion: _mark(form.get(f"{letter}_{criterion}")) for criterion in CRITERIA}
                for letter, model in models.items()
            }
            if missing := [f"{letter}, {criterion}" for letter, model in models.items() for criterion in CRITERIA
                           if marks[model][criterion] is None]:  # fmt: skip
                problem = f"Please give every mark; missing: {'; '.join(missing)}."
                self._send(HTTPStatus.OK, _question_page(study, rater, question, form, problem))
                return
            with self.server.writing:
                study.add(rater, question, marks)
        except (ValueError, InputError) as error:
            self._send(HTTPStatus.BAD_REQUEST, _page("Not understood", f"<p>{html.escape(str(error))}</p>"))
            return
        self._send(HTTPStatus.SEE_OTHER, "", {"Location": f"/?{urlencode({'rater': rater})}"})

    def _show(self, query: dict[str, str]) -> None:
        study = self.server.study
        if "rater" not in query:
            self._send(HTTPStatus.OK, _start_page(""))
            return
        try:
            rater = check_name(query["rater"])
            known = study.marks(rater)
        except InputError as error:
            self._send(HTTPStatus.OK, _start_page(str(error)))
            return
        order = study.order(rater)
        wanted = query.get("question", "")
        if wanted.isdecimal() and int(wanted) in known:  # one that is to be marked again
            question, form = int(wanted), {}
            letters = study.blinded(rater, question)
            for letter, model in letters.items():
                form |= {f"{letter}_{criterion}": str(mark) for criterion, mark in known[question][model].items()}
            self._send(HTTPStatus.OK, _question_page(study, rater, question, form, ""))
            return
        question = next((number for number in order if number not in known), None)
        if question is None:
            thanks = f"<p>All {len(order)} questions are marked. Thank you, {html.escape(rater)}!</p>"
            self._send(HTTPStatus.OK, _page("Done", thanks))
            return
        self._send(HTTPStatus.OK, _question_page(study, rater, question, {}, ""))

    def _is_ours(self) -> bool:
        """Return whether the request is meant for this server and comes from its page; refuse it if not."""
        hosts = {f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") in hosts and (origin is None or origin in {f"http://{host}" for host in hosts}):
            return True
        self.close_connection = True
        self._send(HTTPStatus.FORBIDDEN, _page("Refused", "<p>This request comes from another page.</p>"))
        return False

    def _send(self, status: HTTPStatus, content: str, headers: dict[str, str] | None = None) -> None:
        body = content.encode()
        self.send_response(status)
        for name, value in {**HEADERS, **(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep quiet: the terminal shows progress instead."""
        log.debug(format, *arguments)


def _mark(text: str | None) -> int | None:
    return int(text) if text in map(str, range(LOWEST, HIGHEST + 1)) else None


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)}</title><link rel="stylesheet" href="/style.css"></head>\n'
        f"<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def _start_page(problem: str) -> str:
    shown = f'<p class="problem">{html.escape(problem)}</p>' if problem else ""
    rules = "".join(f"<li><b>{name}</b>: {html.escape(text)}</li>" for name, text in CRITERIA.items())
    return _page(
        "Which answers are good?",
        f"{shown}<p>You will see questions with the answers of several models, in an order that is drawn anew each "
        f"time. Give each answer marks from {LOWEST} (bad) to {HIGHEST} (very good):</p><ul>{rules}</ul>"
        "<p>You can close the page at any time; under the same name it goes on where you were.</p>"
        '<form action="/" method="get"><label>Your name <input type="text" name="rater" required maxlength="40" '
        'pattern="[A-Za-z0-9][A-Za-z0-9_\\-]*" autofocus></label> <button>Begin</button></form>',
    )


def _question_page(study: Study, rater: str, question: int, form: dict[str, str], problem: str) -> str:
    """Return the page of one question, with the marks of a form filled in."""
    each = study.questions[question]
    order = study.order(rater)
    place = order.index(question)
    shown = f'<p class="problem" role="alert">{html.escape(problem)}</p>' if problem else ""
    answers = "".join(
        f"<section><h2>Answer {letter}</h2>"
        f'<div class="text">{html.escape(each.answers[model]) or "<i>(empty)</i>"}</div>'
        f"{''.join(_choices(letter, criterion, form) for criterion in CRITERIA)}</section>"
        for letter, model in study.blinded(rater, question).items()
    )
    back = f'<a href="/?{urlencode({"rater": rater, "question": order[place - 1]})}">Back</a>' if place else ""
    hidden = (
        f'<input type="hidden" name="rater" value="{rater}"><input type="hidden" name="question" value="{question}">'
    )
    return _page(
        f"Question {place + 1} of {len(order)}",
        f'{shown}<div class="text">{html.escape(each.question)}</div><form action="/marks" method="post">{hidden}'
        f'<div class="answers">{answers}</div><p><button>Save and go on</button> {back}</p></form>',
    )


def _choices(letter: str, criterion: str, form: dict[str, str]) -> str:
    name = f"{letter}_{criterion}"
    buttons = "".join(
        f'<label><input type="radio" name="{name}" value="{mark}" required'
        f"{' checked' if form.get(name) == str(mark) else ''}> {mark}</label>"
        for mark in range(LOWEST, HIGHEST + 1)
    )
    described = f"{criterion.capitalize()} <small>{html.escape(CRITERIA[criterion])}</small>"
    return f"<fieldset><legend>{described}</legend>{buttons}</fieldset>"
