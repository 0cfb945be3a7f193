"""The command line of every script: one dataclass, and one line where the user made a mistake."""

import inspect
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from utils.files import InputError

Config = TypeVar("Config")


def run(main: Callable[[Config], Any], config_class: type[Config], presets: Mapping[str, Config] | None = None) -> None:
    """Make a Config from the arguments, call `main` with it, and end the process.

    Args:
        main: what the script does.
        config_class: a dataclass; its fields become flags and their docstrings the help.
        presets: configurations with a name. Given as first argument it replaces the defaults, and
            flags after it change single fields: `python -m pretraining.simple demo --steps 100`.
    """
    import tyro  # here only: importing a script's module must not need it

    level = os.environ.get("LOG_LEVEL", "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        sys.exit(f"error: LOG_LEVEL must be one of DEBUG, INFO, WARNING and ERROR, got {level!r}")
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    presets = presets or {}
    arguments = sys.argv[1:]
    description = inspect.cleandoc(config_class.__doc__ or "")
    default: dict[str, Any] = {}
    if arguments and arguments[0] in presets:
        default = {"default": presets[arguments.pop(0)]}
    elif presets:
        description += f"\n\nPresets, as first argument: {', '.join(presets)}. Flags after one change its values."
    program = f"python -m {sys.modules['__main__'].__spec__.name.removesuffix('.__main__')}"  # type: ignore[union-attr]
    try:
        main(tyro.cli(config_class, args=arguments, prog=program, description=description, **default))
    except (InputError, OSError) as error:
        logging.getLogger(__name__).debug("traceback, since LOG_LEVEL is DEBUG", exc_info=True)
        sys.exit(f"error: {describe(error)}")
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        sys.exit(130)


def describe(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split())
