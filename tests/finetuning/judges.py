"""Judges that are none: an endpoint on loopback that replies by rule."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def endpoint(reply: Callable[[dict[str, Any]], bytes], status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve on loopback, and hand out the address, and the list of all requests so far.

    Args:
        reply: from the request's JSON to the body of the response.
        status: of all responses.
    """
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({"path": self.path, "key": self.headers.get("Authorization"), **content})
            body = reply(content)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def says(text: str | None) -> bytes:
    """Return what OpenAI's protocol wraps around a text."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
