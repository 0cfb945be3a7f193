"""The optional content filter: one function that looks at a text, and says why it is refused.

`--content-filter my_rules:refuse` names it by module and function. It is asked about each message, the system prompt
and each prompt of the API, and about an answer whenever some of it is about to be shown, so it should take
microseconds.
"""

import importlib
from collections.abc import Callable

from utils.files import InputError

Filter = Callable[[str], str | None]
"""Given a text, the reason why it is refused, for a person to read; None if it is not."""


def load_filter(name: str) -> Filter:
    """Return the function that `module:function` names.

    Raises:
        InputError: if there is none.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"content_filter must be module:function, got {name!r}: {error}") from error
    if not callable(found):
        raise InputError(f"content_filter must name a function, got {name!r}, which is a {type(found).__name__}")
    return found
