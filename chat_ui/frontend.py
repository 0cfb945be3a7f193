"""Sets Chainlit up: its folder, its configuration, and which of its routes are served.

Chainlit reads the environment and writes files when it is imported, so it is imported here only, after `prepare`.
What is wrong with its routes is left out rather than mended: files, feedback, shared threads and tools that nobody
asked for, and the documentation of its interface.
"""

import json
import logging
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

from fastapi.responses import HTMLResponse
from starlette.routing import BaseRoute, Mount, Route

PUBLIC = Path(__file__).parent / "public"

KEPT_ROUTES = (
    "/public/", "/assets/", "/auth/config", "/auth/header", "/auth/oauth/", "/login", "/logout", "/user",
    "/set-session-cookie", "/project/translations", "/project/settings", "/project/threads",
    "/project/thread/{thread_id}", "/project/thread", "/project/action", "/favicon", "/logo", "/avatars/",
)  # fmt: skip
PAGES = ("/", "/login", "/login/callback", "/thread/{id}")

WORDS = {
    ("auth", "login", "form", "email", "label"): "User name",
    ("auth", "login", "form", "email", "placeholder"): "User name",
    ("chat", "input", "placeholder"): "Write to the model",
    ("chat", "input", "actions", "stop"): "Stop",
    ("chat", "watermark"): "A small model writes text, not truth.",
    ("threadHistory", "sidebar", "empty"): "No conversations yet",
    ("navigation", "header", "readme"): "Help",
}


def prepare(state: Path) -> None:
    """Make the folder that Chainlit works in, and say where it is; to be called before Chainlit is imported.

    Args:
        state: a folder for what the server keeps, with the secret that signs logins.
    """
    root = state / "site"
    for folder in (root / ".chainlit" / "translations", root / "public" / "elements"):
        folder.mkdir(parents=True, exist_ok=True)
    for file in PUBLIC.iterdir():
        place = {"config.toml": root / ".chainlit", "chainlit.md": root}.get(file.name, root / "public")
        shutil.copyfile(file, (place / "elements" if file.suffix == ".jsx" else place) / file.name)
    os.environ["CHAINLIT_APP_ROOT"] = str(root.resolve())
    os.environ["TRACELOOP_TELEMETRY"] = "false"  # of a library that Chainlit brings along
    os.environ.setdefault("CHAINLIT_AUTH_SECRET", secret(state / "secret"))


def secret(path: Path) -> str:
    """Return the secret in a file, which is made, for its owner only, if it is not there."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text(encoding="ascii").strip()
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        made = secrets.token_urlsafe(48)
        file.write(made + "\n")
    return made


def load() -> None:
    """Import Chainlit, without the warnings of the libraries that it brings along, and put our words into its pages."""
    logging.disable(logging.INFO)  # each file that Chainlit makes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import chainlit.server
        from chainlit.config import config, config_translation_dir
        from chainlit.logger import logger
    logging.disable(logging.NOTSET)
    logger.setLevel(logging.ERROR)
    config.ui.default_theme = "system"  # which its file may not say, though its pages know it

    place = Path(config_translation_dir) / "en-US.json"
    translation = json.loads((Path(chainlit.__file__).parent / "translations" / place.name).read_text("utf-8"))
    for path, text in WORDS.items():
        _set(translation, path, text)
    place.write_text(json.dumps(translation), encoding="utf-8")


def _set(tree: dict, path: Sequence[str], text: str) -> None:
    for name in path[:-1]:
        tree = tree[name]
    if path[-1] not in tree:
        raise KeyError(f"Chainlit has no text {'.'.join(path)}")
    tree[path[-1]] = text


def routes() -> list[BaseRoute]:
    """Return the routes of Chainlit that are served, and the pages, which load nothing from elsewhere."""
    from chainlit.server import asgi_app, router

    def kept(path: str) -> bool:
        return any(path == name or (name.endswith("/") and path.startswith(name)) for name in KEPT_ROUTES)

    return [
        Mount("/ws/socket.io", asgi_app),
        *(route for route in router.routes if kept(route.path)),
        *(Route(page, _page) for page in PAGES),
    ]


def _page(request: object) -> HTMLResponse:
    from chainlit.server import get_html_template

    return HTMLResponse(re.sub(r'<link[^>]*href="https://[^>]*>', "", get_html_template("")))
