"""The first stage on many machines: the filters of `screen.py` as a step of a datatrove pipeline.

    executor = pipeline("s3://crawl/", "s3://kept/", Screen(), tasks=500)     # LocalPipelineExecutor
    executor.run()

With datatrove's SlurmPipelineExecutor or RayPipelineExecutor the same steps run on a cluster. What they write is
lines of JSON, which `prepare_smollm` then deduplicates, mixes and shuffles, on one machine:

    python -m pretraining.prepare_smollm --sources web=kept/ --no-prose web --language '' --mix web=1 --out runs/data
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pretraining.corpus.documents import Document
from pretraining.corpus.screen import Screen
from utils.files import InputError


@dataclass
class Screening:
    """A step that lets through what a `Screen` does. It can stand in any pipeline of datatrove's."""

    screen: Screen
    rejected: Counter[str] = field(default_factory=Counter)
    """How many for which reason, in this process."""

    def __call__(self, data: Iterable[Any], rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Yield the documents that pass, with the text that is to be kept.

        Args:
            data: documents of datatrove's.
            rank: of the task; not needed, since each document is judged by itself.
            world_size: tasks.
        """
        for document in data:
            verdict = self.screen.judge(Document(document.text, str(document.metadata.get("url", ""))))
            if verdict.reason:
                self.rejected[verdict.reason] += 1
            else:
                document.text = verdict.text
                yield document


def pipeline(inputs: str, out: str, screen: Screen, *, tasks: int, workers: int = 1, logs: str | None = None) -> Any:
    """Return an executor that reads lines of JSON, filters them and writes what passes, in processes of this machine.

    Args:
        inputs: a folder, or an address that fsspec knows.
        out: where each task writes a file.
        screen: the filters.
        tasks: parts into which the files are divided; one that is finished is not done again.
        workers: of them at a time.
        logs: where datatrove keeps what is finished.

    Raises:
        InputError: if datatrove is not installed.
    """
    try:
        from datatrove.executor import LocalPipelineExecutor
        from datatrove.pipeline.readers import JsonlReader
        from datatrove.pipeline.writers import JsonlWriter
    except ImportError as error:
        raise InputError("a pipeline for many machines needs datatrove: pip install datatrove[io]") from error
    steps = [JsonlReader(inputs), Screening(screen), JsonlWriter(out)]
    return LocalPipelineExecutor(steps, tasks=tasks, workers=workers, logging_dir=logs)
