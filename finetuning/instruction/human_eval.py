"""Let people judge answers: a page on this machine, or spreadsheets, on which nobody sees which model said what.

    python -m finetuning.instruction.human_eval --answers runs/demo-chat-evaluation/answers.jsonl --out runs/human
    python -m finetuning.instruction.human_eval --out runs/human --sheets anna ben
    python -m finetuning.instruction.human_eval --out runs/human --report

The first draws the questions and opens the page; raters open it one after another, each under a name of their own, and
go on where they were whenever they like. The second writes a spreadsheet for each of two raters; filled in and put
back, they are read by whatever command comes next. The third says what came out: means with intervals, win rates, and
how far the raters agree, which `report.html` shows. So does the first, once it is ended by Ctrl-C.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from finetuning.instruction.scoring.answers import read_answers, stratified
from finetuning.instruction.scoring.marks_report import NUMBERS, TABLE, summarise, write_summary
from finetuning.instruction.scoring.rating_page import RatingServer
from finetuning.instruction.scoring.study import STUDY, Study, check_name
from utils.locks import alone
from utils.outputs import check_output_folder, check_writable
from utils.ranges import Count, Range, Seed, check_ranges

log = logging.getLogger(__name__)

OURS = (STUDY, "marks_*.jsonl", "sheet_*.csv", NUMBERS, TABLE, "report.md", "report.html")


@dataclass(frozen=True)
class Config:
    """Have people mark the answers of several models, blind, and say what came out."""

    answers: Path | None = None
    """Questions with the answers of several models, from `finetuning.instruction.evaluate`; not needed for a study
    that has begun."""
    out: Path = Path("runs/human-evaluation")
    """The folder of the study. If it holds one, that one goes on."""
    n: Count = 500
    """Questions to draw, a share of each category."""
    sheets: tuple[str, ...] = ()
    """Instead of opening the page, write a spreadsheet for each of these raters."""
    report: bool = False
    """Only say what came out."""
    port: Annotated[int, Range(0, 65535)] = 8765
    """Where the page is, on this machine; 0 takes any port that is free."""
    seed: Seed = 0
    """Decides which questions are drawn, and who sees them in which order."""

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in self.sheets:
            check_name(name)


def main(config: Config) -> dict[str, Any] | None:
    """Begin a study or go on with it; return what came out, or None where spreadsheets were written.

    Raises:
        InputError: for answers, a folder, a spreadsheet or a port that cannot be used.
    """
    check_writable(config.out)
    if config.out.exists():
        check_output_folder(config.out, OURS, overwrite=True, inputs=(config.answers,))
    if config.answers is None:
        study = Study.read(config.out)
    else:
        answered = read_answers(config.answers)
        drawn = stratified([each.category for each in answered], config.n, config.seed)
        study = Study.open(config.out, config.seed, [answered[place] for place in drawn])
    with alone(config.out, "a study in"):
        if config.sheets:
            for name in config.sheets:
                log.info("%s: fill in marks from 1 to 5, and put it back", study.write_sheet(name))
            return None
        for path in sorted(config.out.glob("sheet_*.csv")):
            log.info("%s: %s questions are marked", path, study.read_sheet(path))
        if not config.report:
            serve(study, config.port)
        result = summarise(study)
        write_summary(study, result)
    for model, means in result["means"].items():
        if means["overall"]["value"] is not None:
            log.info("%s: %.2f of 5 on average", model, means["overall"]["value"])
    log.info("%s", config.out / "report.html")
    return result


def serve(study: Study, port: int) -> None:
    """Serve the page until Ctrl-C."""
    with RatingServer(study, port) as server:
        log.info(
            "open %s to mark %s questions; Ctrl-C ends it, and writes the report", server.url, len(study.questions)
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            log.info("stopped")


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
