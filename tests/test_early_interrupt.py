"""Ctrl-C before a script has finished its imports ends it as Ctrl-C does later: with a word, and no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = [
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__main__")
    for path in sorted(ROOT.glob("*/**/*.py"))
    if path.parts[len(ROOT.parts)] not in (".venv", "tests", "utils")
    and path.name != "make_corpus.py"  # needs neither, and is done at once
    and '\nif __name__ == "__main__":\n' in path.read_text(encoding="utf-8")
]
# NumPy's modules do this: what they import may be missing, and so Ctrl-C would be forgotten.
INTERRUPTED = """
import signal
try:
    signal.raise_signal(signal.SIGINT)
except BaseException:
    pass
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_is_quiet(script: str, tmp_path: Path) -> None:
    for name in ("numpy", "torch", "tyro"):  # the first to be imported is interrupted; the last is, by all scripts
        (tmp_path / f"{name}.py").write_text(INTERRUPTED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", script, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert result.returncode != 0
    assert (result.stdout, result.stderr) == ("", "\nstopped\n")


def test_other_errors_are_shown(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("1 / 0")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "pretraining.simple"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_there_are_scripts() -> None:
    assert {"pretraining.simple", "working_with_text_data.prepare", "gpt_model.benchmark"} <= set(SCRIPTS)
