"""The models that there are, and those that are loaded: as many as memory allows, the least recently used leaves."""

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

import torch

from chat_ui.engine.events import UnknownModelError
from finetuning.classification.text_classifier import KEY as CLASSIFIER
from finetuning.classification.text_classifier import TextClassifier, facts_of
from finetuning.instruction.templates import TEMPLATES, Template
from gpt_model import run_directory
from gpt_model.config import GPTConfig
from gpt_model.costs import weight_bytes
from gpt_model.fast.decoder import FastDecoder
from gpt_model.generation import END_OF_TEXT, LanguageModel
from utils.command_line import describe
from utils.files import InputError, printable
from utils.gpt2_download import ModelManager
from utils.hardware import pick_device
from utils.hub_download import Progress
from utils.memory import available_memory
from working_with_text_data.minbpe import GPT2Tokenizer, Tokenizer

log = logging.getLogger(__name__)

Kind = Literal["tuned", "base", "classifier", "gpt2"]
KINDS: dict[Kind, str] = {
    "tuned": "answers",
    "base": "continues text",
    "classifier": "tells apart",
    "gpt2": "OpenAI's GPT-2, continues text",
}
GPT2 = {"gpt2": "gpt2-small", "gpt2-medium": "gpt2-medium", "gpt2-large": "gpt2-large", "gpt2-xl": "gpt2-xl"}
SECONDS_BETWEEN_LOOKS = 1.0  # at the folder of runs
FALLBACK_MEMORY = 4 * 2**30  # bytes, where the system does not say what it has
CLASSES_IN_LABEL = 4

Held = TypeVar("Held", "Loaded", TextClassifier)


class MemoryFullError(InputError):
    """A model does not fit into memory beside those that must stay."""


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model before it is loaded."""

    name: str
    """How to ask for it: a run directory's path below the folder of runs, or one of gpt2, gpt2-medium, ..."""
    kind: Kind
    """tuned: answers in a conversation; base: a run that continues text; classifier: a run that writes no text, but
    tells classes of it apart; gpt2: OpenAI's, which continues text too."""
    made: datetime | None
    """When its weights were written, in local time; None for GPT-2."""
    template: str | None
    """The name of the template of a tuned model."""
    config: GPTConfig
    run: Path | None
    """The run directory; None for GPT-2."""
    is_here: bool = True
    """False: it must be downloaded first."""
    classes: tuple[str, ...] = ()
    """What a classifier tells apart."""

    @property
    def context_length(self) -> int:
        """Return how many tokens it can look at."""
        return self.config.context_length

    @property
    def nbytes(self) -> int:
        """Return the bytes of its weights in memory."""
        return weight_bytes(self.config, torch.float32)

    @property
    def label(self) -> str:
        """Return a name for people: what it is, and when it was made."""
        made = "" if self.made is None else f", made {self.made:%Y-%m-%d %H:%M}"
        return f"{self.name} ({KINDS[self.kind]}{self._classes()}{made})"

    def _classes(self) -> str:
        if not self.classes:
            return ""
        names = [printable(name) for name in self.classes[:CLASSES_IN_LABEL]]
        if more := self.classes[CLASSES_IN_LABEL:]:
            names.append(f"{len(more):,} more")
        return f" {', '.join(names[:-1])} and {names[-1]}"


@dataclass(frozen=True)
class Loaded:
    """A model in memory that writes text."""

    info: ModelInfo
    model: LanguageModel
    tokenizer: Tokenizer
    template: Template | None
    stop_tokens: tuple[int, ...]
    """Those that end its texts."""

    @classmethod
    def of(cls, info: ModelInfo, model: LanguageModel, tokenizer: Tokenizer) -> "Loaded":
        """Return a model with what follows from its template.

        Raises:
            InputError: if the tokenizer lacks the template's special tokens.
        """
        template = None if info.template is None else TEMPLATES[info.template]
        if template is None:
            end = tokenizer.special_tokens.get(END_OF_TEXT)
            return cls(info, model, tokenizer, None, () if end is None else (end,))
        if missing := template.missing(tokenizer):
            raise InputError(f"{info.name}: its tokenizer lacks {', '.join(missing)}, which {template.name} needs")
        return cls(info, model, tokenizer, template, template.stop_tokens(tokenizer))


@dataclass
class _Resident:
    """A model in memory, and what it takes there."""

    info: ModelInfo
    held: Loaded | TextClassifier
    nbytes: int


class Models:
    """Finds models and keeps them in memory. All methods may be called from any thread.

    Args:
        runs: a folder; it, or each run directory in it at any depth, is a model.
        gpt2: whether to offer GPT-2 in its four sizes, downloaded when first asked for.
        memory: bytes of weights and caches to hold at most; None: half of what is free now. One model may always stay.
        device: where the models compute: cpu, cuda or mps; auto takes a GPU if there is one.

    Raises:
        InputError: if there is no such device.
    """

    def __init__(self, runs: Path, *, gpt2: bool = True, memory: int | None = None, device: str = "auto") -> None:
        self.runs = runs
        self.device = pick_device(device)
        self.memory = memory or int(min(available_memory() / 2, 2**50)) or FALLBACK_MEMORY
        self._gpt2 = gpt2
        self._lock = threading.RLock()
        self._loading: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._resident: dict[str, _Resident] = {}  # the least recently used first
        self._added: dict[str, ModelInfo] = {}
        self._found: list[ModelInfo] = []
        self._looked = -SECONDS_BETWEEN_LOOKS

    def available(self) -> list[ModelInfo]:
        """Return what there is now: tuned models, base models, classifiers, GPT-2; of each kind the newest first.

        A run directory that cannot be used is left out, with a warning in the log. What was found a second ago is
        not looked for again.
        """
        with self._lock:
            if time.monotonic() - self._looked >= SECONDS_BETWEEN_LOOKS:
                found = [info for run in _run_directories(self.runs) if (info := self._describe(run)) is not None]
                kinds = list(KINDS)
                found.sort(key=lambda info: (kinds.index(info.kind), -info.made.timestamp() if info.made else 0.0))
                taken = {info.name for info in found}
                self._found = found + [info for info in self._gpt2_sizes() if info.name not in taken]
                self._looked = time.monotonic()
            return [*self._added.values(), *self._found]

    def add(self, loaded: Loaded) -> None:
        """Offer a model that is in memory and in no file; it stays there."""
        with self._lock:
            self._added[loaded.info.name] = loaded.info
            self._resident[loaded.info.name] = _Resident(loaded.info, loaded, loaded.info.nbytes)

    def info(self, name: str) -> ModelInfo:
        """Return what is known of a model. One whose files are gone is still known while it is in memory.

        Raises:
            UnknownModelError: if there is none of that name.
        """
        found = self.available()
        for info in found:
            if info.name == name:
                return info
        with self._lock:
            if name in self._resident:
                return self._resident[name].info
        names = ", ".join(info.name for info in found) or "none"
        raise UnknownModelError(f"there is no model {name!r:.100}; there are: {names}")

    def writer(self, name: str) -> ModelInfo:
        """Return what is known of a model that writes text.

        Raises:
            UnknownModelError: if there is none of that name.
            InputError: if it is a classifier.
        """
        info = self.info(name)
        if info.kind == "classifier":
            raise InputError(f"{name} writes no text, it is a classifier: python -m finetuning.classification.predict")
        return info

    def loaded(self) -> list[str]:
        """Return the names of the models in memory, the least recently used first."""
        with self._lock:
            return list(self._resident)

    def get(self, name: str) -> Loaded | TextClassifier | None:
        """Return a model if it is in memory and its files are those that are there now, and note that it is used."""
        info = self.info(name)
        with self._lock:
            resident = self._resident.get(name)
            if resident is None or resident.info.made != info.made:
                return None
            self._resident[name] = self._resident.pop(name)
            return resident.held

    def load(
        self, name: str, progress: Progress | None = None, *, extra: int = 0, keep: Collection[str] = ()
    ) -> Loaded:
        """Return a model that writes text, read from the disk or downloaded if need be, which takes its time.

        Args:
            name: which one.
            progress: called with the bytes that have come, and all of them, while it is downloaded.
            extra: bytes that the caller will take for it beside the weights.
            keep: models that must not leave for it.

        Raises:
            UnknownModelError: if there is none of that name.
            MemoryFullError: if it does not fit beside `keep`.
            InputError: if it is a classifier, or cannot be read or downloaded.
        """

        def read(info: ModelInfo) -> Loaded:
            if info.run is None:
                ModelManager().download_gpt2_model(name, progress=progress)
            model, tokenizer = run_directory.load(info.run, name if info.run is None else None)
            return Loaded.of(info, FastDecoder(model.to(self.device), "float32"), tokenizer)

        self.writer(name)
        return self._load(name, read, extra, keep)

    def tokenizer(self, name: str) -> Tokenizer:
        """Return the tokenizer of a model that writes text, read from the disk if the model is not in memory.

        Raises:
            UnknownModelError: if there is none of that name.
            InputError: if it is a classifier, or its tokenizer cannot be read.
        """
        info = self.writer(name)
        if isinstance(held := self.get(name), Loaded):
            return held.tokenizer
        return GPT2Tokenizer() if info.run is None else run_directory.load_tokenizer(info.run)

    def load_classifier(self, name: str, *, keep: Collection[str] = ()) -> TextClassifier:
        """Return a classifier, read from the disk if need be, which takes its time.

        Raises:
            UnknownModelError: if there is none of that name.
            MemoryFullError: if it does not fit beside `keep`.
            InputError: if it is no classifier, or cannot be read.
        """

        def read(info: ModelInfo) -> TextClassifier:
            classifier = TextClassifier.from_run(info.run)
            classifier.model.to(self.device)
            return classifier

        if self.info(name).kind != "classifier":
            raise InputError(f"{name} is not a classifier")
        return self._load(name, read, 0, keep)

    def _load(self, name: str, read: Callable[[ModelInfo], Held], extra: int, keep: Collection[str]) -> Held:
        """Return a model, with `read` if it is not in memory; see `load`."""
        with self._loading[name]:
            if (held := self.get(name)) is not None:
                return held
            info = self.info(name)
            self._make_room(info, extra, keep)
            try:
                held = read(info)
            except OSError as error:
                raise InputError(f"{name} cannot be loaded: {describe(error)}") from error
            with self._lock:
                self._looked = -SECONDS_BETWEEN_LOOKS  # a downloaded one is here now
                self._resident[name] = _Resident(info, held, info.nbytes + extra)
            return held

    def unload(self, name: str) -> None:
        """Forget a model that is in memory."""
        with self._lock:
            self._resident.pop(name, None)

    def _make_room(self, info: ModelInfo, extra: int, keep: Collection[str]) -> None:
        """Let the least recently used models leave until there is room; the old weights of the same name first."""
        with self._lock:
            self._resident.pop(info.name, None)
            needed = info.nbytes + extra
            for name in list(self._resident):
                if self._taken() + needed <= self.memory:
                    return
                if name not in keep and name not in self._added:
                    log.info("%s leaves memory for %s", name, info.name)
                    del self._resident[name]
            if self._resident and self._taken() + needed > self.memory:
                others = ", ".join(self._resident)
                raise MemoryFullError(f"{info.name} does not fit into memory beside {others}, which are in use")

    def _taken(self) -> int:
        return sum(resident.nbytes for resident in self._resident.values())

    def _gpt2_sizes(self) -> Iterator[ModelInfo]:
        if self._gpt2:
            for name, preset in GPT2.items():
                here = ModelManager().is_here(name)
                yield ModelInfo(name, "gpt2", None, None, GPTConfig.preset(preset), None, here)

    def _describe(self, run: Path) -> ModelInfo | None:
        name = run.relative_to(self.runs).as_posix() if run != self.runs else run.resolve().name
        try:
            config, weights = run / "config.json", run / "model.safetensors"
            content = _read(run, config.stat().st_mtime_ns)
            made = datetime.fromtimestamp(weights.stat().st_mtime)
        except OSError:
            return None  # nothing is trained yet, or it is being deleted
        if content is None:
            return None
        model, template, classes = content
        kind: Kind = "classifier" if classes else "base" if template is None else "tuned"
        return ModelInfo(name, kind, made, template, model, run, classes=classes)


@lru_cache(maxsize=1024)
def _read(run: Path, modified_ns: int) -> tuple[GPTConfig, str | None, tuple[str, ...]] | None:
    """Return the shape, template and classes that a config.json names; None, after a warning, if it is of no use."""
    try:
        if not _is_utf8(run):  # names of folders need not be UTF-8
            raise InputError(
                f"{printable(str(run))}: safetensors opens no file by a path that is not UTF-8: rename the folder"
            )
        content = run_directory.read_config(run)
        classes = tuple(facts_of(content, run)["classes"]) if CLASSIFIER in content else ()
        template = content.get("template")
        if template is not None and template not in TEMPLATES:
            raise InputError(f"{run}: its template {template!r} is not one of {', '.join(TEMPLATES)}")
        return GPTConfig.from_dict(content["model"]), template, classes
    except (InputError, TypeError) as error:
        log.warning("left out of the models: %s", error)
        return None


def _is_utf8(path: Path) -> bool:
    return os.fsencode(path) == str(path).encode(errors="replace")


def _run_directories(folder: Path) -> Iterator[Path]:
    """Yield the folders with a config.json, at any depth, but not those inside such a folder; links are followed."""
    seen = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(path)) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        if "config.json" in files:
            folders.clear()
            yield Path(path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
