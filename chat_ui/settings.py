"""What a reader can set, and its limits. The widgets limit only a browser, so the server clamps whatever arrives."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from chat_ui.texts import clean
from gpt_model.sampling import Sampling

if TYPE_CHECKING:
    from chainlit.input_widget import InputWidget

LONGEST_SYSTEM_PROMPT = 4_000  # characters
LARGEST_SEED = 2**53 - 1  # what JavaScript can count to


@dataclass(frozen=True)
class Limits:
    """The numbers that a setting may take, and the step of its slider."""

    least: float
    most: float
    step: float


LIMITS = {
    "temperature": Limits(0, 2, 0.05),
    "top_k": Limits(0, 200, 1),
    "top_p": Limits(0.05, 1, 0.01),
    "repetition_penalty": Limits(1, 2, 0.01),
    "max_new_tokens": Limits(1, 1024, 1),
    "seed": Limits(0, LARGEST_SEED, 1),
}


@dataclass(frozen=True)
class Settings:
    """How a conversation's answers are written. Made by `clamped`, all values are within their limits."""

    temperature: float = 0.8
    top_k: int = 50
    """0 for all tokens."""
    top_p: float = 0.95
    repetition_penalty: float = 1.1
    max_new_tokens: int = 200
    seed: int | None = None
    system_prompt: str = ""

    def sampling(self) -> Sampling:
        """Return the settings as the engine takes them."""
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k or None,
            top_p=self.top_p if self.top_p < 1 else None,
            repetition_penalty=self.repetition_penalty,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
        )


def clamped(values: Any, base: Settings | None = None) -> Settings:
    """Return settings with what can be used of some values, each within its limits, whatever a client sent.

    Args:
        values: by the names of the settings; other names are ignored, and so is what is not a number.
        base: what holds for the rest; `Settings()` by default.
    """
    base = base or Settings()
    if not isinstance(values, Mapping):
        return base
    changes: dict[str, Any] = {}
    for name, limits in LIMITS.items():
        if name in values:
            number = _number(values[name])
            if name == "seed" and values[name] in (None, ""):
                changes[name] = None
            elif number is not None:
                kept = min(max(number, limits.least), limits.most)
                changes[name] = float(kept) if limits.step < 1 else int(kept)
    if isinstance(values.get("system_prompt"), str):
        changes["system_prompt"] = clean(values["system_prompt"])[:LONGEST_SYSTEM_PROMPT]
    return replace(base, **changes)


def _number(value: Any) -> float | int | None:
    """Return a finite number, also of a text that holds one; None of anything else."""
    if isinstance(value, bool):
        return None
    try:
        number = int(value) if isinstance(value, str) and value.strip().isdecimal() else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def widgets(settings: Settings) -> list["InputWidget"]:
    """Return the panel that shows settings in the browser."""
    from chainlit.input_widget import Slider, TextInput

    words = {
        "temperature": ("Temperature", "0 always takes the likeliest token; above 1, unlikely ones get common."),
        "top_k": ("Top-k", "Draw among this many of the likeliest tokens; 0 for all."),
        "top_p": ("Top-p", "Draw among the likeliest tokens that together have this probability."),
        "repetition_penalty": ("Repetition penalty", "Above 1, words that were said already get rarer."),
        "max_new_tokens": ("Longest answer", "Tokens to write at most."),
    }
    sliders = [
        Slider(id=name, label=label, description=text, initial=getattr(settings, name), **_ends(name))
        for name, (label, text) in words.items()
    ]
    seed = "" if settings.seed is None else str(settings.seed)
    return [
        TextInput(
            id="system_prompt",
            label="System prompt",
            description="Tells a tuned model how to answer; others do not read it.",
            initial=settings.system_prompt,
            multiline=True,
        ),
        *sliders,
        TextInput(id="seed", label="Seed", description="The same seed draws the same text; empty: anew.", initial=seed),
    ]


def _ends(name: str) -> dict[str, float]:
    limits = LIMITS[name]
    return {"min": limits.least, "max": limits.most, "step": limits.step}


def as_json(settings: Settings) -> dict[str, Any]:
    """Return settings as they are stored with a conversation."""
    return asdict(settings)
