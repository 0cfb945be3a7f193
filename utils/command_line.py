"""The command line of every script: one dataclass, and one line where the user made a mistake."""

import inspect
import io
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from utils import early_interrupt
from utils.files import InputError, printable
from utils.memory import is_full

Config = TypeVar("Config")

# Characters that a terminal obeys, among them the escape that begins a command; a text needs the first two as they are.
CONTROLS = {code: ascii(chr(code))[1:-1] for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
CHATTY = ("httpx", "httpx2", "matplotlib")  # each request, with its signed address, and the first look for fonts
NARROWEST = 40  # columns of a terminal; with fewer, tyro's layout of the help does not come to an end


def run(
    main: Callable[[Config], Any],
    config_class: type[Config],
    presets: Mapping[str, Config] | None = None,
    *,
    first: str | None = None,
) -> None:
    """Make a Config from the arguments, call `main` with it, and end the process.

    What is printed reaches any console: characters that it cannot hold are written out, and a reader that has seen
    enough (`| head`) ends the script quietly.

    Args:
        main: what the script does.
        config_class: a dataclass; its fields become flags and their docstrings the help.
        presets: configurations with a name. Given as first argument it replaces the defaults, and
            flags after it change single fields: `python -m pretraining.simple demo --steps 100`.
        first: the field that a first argument without a flag gives: `python -m pretraining.watch runs/mine`.
    """
    _open_streams()
    try:
        try:
            _run(main, config_class, presets or {}, first)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads any more. Without this, Python would try to write again as it ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_full(error):
            raise
        logging.getLogger(__name__).debug("traceback, since LOG_LEVEL is DEBUG", exc_info=True)
        sys.exit(f"error: {describe(error)}")
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        sys.exit(130)


def _run(
    main: Callable[[Config], Any], config_class: type[Config], presets: Mapping[str, Config], first: str | None
) -> None:
    import tyro  # here only: importing a script's module must not need it

    early_interrupt.end()

    level = os.environ.get("LOG_LEVEL", "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        raise InputError(f"LOG_LEVEL must be one of DEBUG, INFO, WARNING and ERROR, got {level!r}")
    handler = _AboveProgress(sys.stderr)
    handler.setFormatter(_Plain())
    logging.basicConfig(level=level, handlers=[handler])
    if level == "INFO":
        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
    arguments = sys.argv[1:]
    description = inspect.cleandoc(config_class.__doc__ or "")
    default: dict[str, Any] = {}
    if arguments and arguments[0] in presets:
        default = {"default": presets[arguments.pop(0)]}
    elif presets:
        description += f"\n\nPresets, as first argument: {', '.join(presets)}. Flags after one change its values."
    if first and arguments and not arguments[0].startswith("-"):
        arguments.insert(0, f"--{first}")
    program = f"python -m {sys.modules['__main__'].__spec__.name.removesuffix('.__main__')}"  # type: ignore[union-attr]
    main(tyro.cli(config_class, args=arguments, prog=program, description=description, **default))


def show(text: str) -> None:
    """Print a piece of a text at once; on a terminal, with its control characters written out, as \\x1b."""
    sys.stdout.write(text.translate(CONTROLS) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def describe(error: BaseException) -> str:
    """Return an error as one line that commands no terminal, whatever names and texts are quoted in it."""
    if is_full(error):
        return "there is not enough memory for this"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return printable(f"{where}{error.strerror}")
    return printable(" ".join(str(error).split()))


class _AboveProgress(logging.StreamHandler):
    """Writes each message on a line of its own, not behind a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class _Plain(logging.Formatter):
    """Shows the message alone, line by line, with what a terminal would obey written out: messages quote file names."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


def _open_streams() -> None:
    """Make sure that the three standard streams exist, and that whatever is printed can be written."""
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BytesIO())
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the shell closed it
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open to the end
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get("COLUMNS", "").isdecimal():
        os.environ["COLUMNS"] = str(max(NARROWEST, int(os.environ["COLUMNS"])))
