"""The README keeps its word: its commands run, and its numbers are those of committed measurements.

Run as a script it prints the measured passages, to be pasted after measuring anew.
"""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attention_mechanisms.benchmark import figures as attention_figures
from chat_ui import load
from chat_ui.benchmark import figures as engine_figures
from finetuning.instruction import experiments
from gpt_model.benchmark import figures as model_figures
from tests.commands import run
from utils.measuring import markdown_table
from working_with_text_data.benchmark import figures as tokenizer_figures

ROOT = Path(__file__).parent.parent
NAMES = (
    "working_with_text_data", "attention_mechanisms", "gpt_model", "pretraining", "finetuning/instruction",
    "finetuning/classification", "chat_ui", "deployment",
)  # fmt: skip
CHAPTERS = [ROOT, *(ROOT / name for name in NAMES if (ROOT / name / "README.md").exists())]


def results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / name).read_bytes())


def summary_passage() -> str:
    """What `make demo` prints in the end, without the advice after it."""
    from pretraining.demo import summary

    printed = summary(results("pretraining/results/demo.json")["runs"][0], Path("runs/demo"))
    return f"```text\n{printed.strip().split(chr(10) + chr(10) + 'Next:')[0]}\n```"


def demo_passage() -> str:
    demo = results("pretraining/results/demo.json")
    machine, runs = demo["machine"], demo["runs"]
    bits = ", ".join(f"{run['bits_per_byte']:.3f}" for run in runs)
    seconds = [run["training_seconds"] for run in runs]
    whole = max(run["demo_seconds"] for run in runs)
    name, best = min(runs[0]["compressors"].items(), key=lambda item: item[1]["given_training_text"])
    return (
        f"Three demos with different seeds reached {bits} bits per byte, where the best of the compressors,\n"
        f"{name}, needs {best['alone']:.2f} alone and {best['given_training_text']:.2f} when given all the "
        "training text.\n"
        f"Training took {min(seconds):.0f} to {max(seconds):.0f} s, the whole command {whole:.0f} s at most "
        f"({machine['cores']} cores of an {machine['cpu']}, PyTorch {machine['torch']})."
    )


def speed_passage() -> str:
    speed, optimizers = results("pretraining/results/speed.json"), results("pretraining/results/optimizers.json")
    lines = ["| the demo's training, one thing changed | tokens/s | of the demo's |", "| --- | ---: | ---: |"]
    for name, tokens in speed["tokens_per_second"].items():
        lines.append(f"| {name} | {tokens:,} | {speed['share_of_the_demos'][name]:.2f} |")
    lines += ["", f"| optimizer, {optimizers['steps']} steps | bits per byte |", "| --- | ---: |"]
    for name, row in optimizers["rows"].items():
        lines.append(f"| {name} | {row['bits_per_byte']:.3f} |")
    return "\n".join(lines)


def recipe_passage() -> str:
    recipe = results("pretraining/results/demo_recipe.json")
    columns = ["text", "positions", "batch", "width", "weight decay", "fall", "besides", "steps:", "bits per byte:"]
    rows = []
    for part in ("quarter", "whole"):
        for row in recipe[part]["rows"]:
            settings = row["settings"]
            bits = row["bits_per_byte"]
            rows.append([
                part, settings["position"], f"{settings['batch_size']} x {settings['context_length']}",
                str(settings["d_model"]), f"{settings['weight_decay']:g}", settings["schedule"], row["besides"],
                f"{settings['steps']:,}", "" if bits is None else f"{bits:.3f}",
            ])  # fmt: skip
    return markdown_table(columns, rows)


def fresh_machine_passage() -> str:
    fresh = results("results/fresh_machine.json")
    return (
        f"With PyTorch's CPU build, `make demo` downloads {fresh['demo_download_mb']:,} MB of packages and "
        f"`make test`\n{fresh['test_download_mb']:,} MB. Setting up took {fresh['demo_setup_seconds']} and "
        f"{fresh['test_setup_seconds']} seconds where we measured, the tests\n{fresh['test_minutes']} minutes on "
        f"{fresh['machine']['cores']} cores."
    )


def tokenizer_passage() -> str:
    return tokenizer_figures.tables(ROOT / "working_with_text_data" / "results")


def attention_passage() -> str:
    return attention_figures.tables(ROOT / "attention_mechanisms" / "results")


def model_passage() -> str:
    return model_figures.tables(ROOT / "gpt_model" / "results")


def corpus_passage() -> str:
    from pretraining.corpus.measure import table

    return table(results("pretraining/results/corpus.json"))


def variants_passage() -> str:
    from pretraining.variants import table

    return table(results("pretraining/results/variants.json"))


def classification_passage() -> str:
    from finetuning.classification.results_table import tables

    return tables()


def pools_passage() -> str:
    from finetuning.classification.results_table import pools

    return pools()


def changes_passage() -> str:
    from finetuning.classification.results_table import changes

    return changes()


def paragraph(text: str) -> str:
    """Break a paragraph into the lines of a page."""
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def gpu_tests_passage() -> str:
    gpu = results("results/gpu.json")
    machine = gpu["machine"]
    return paragraph(
        "`python -m pytest tests/gpu -n 4` runs the tests that need a GPU, in a few minutes; without one they are "
        f"skipped. On {machine['date']}, on an {machine['gpu']} with PyTorch {machine['torch']}, {gpu['n_passed']} of "
        f"{gpu['n_tests']} passed, {gpu['n_failed']} failed, and {gpu['n_not_run']} did not run, since the run was "
        f"stopped after {gpu['seconds']:.0f} seconds. What the {gpu['n_failed']} found is mended, and tested on a CPU; "
        "it has not been run on a GPU since ([results/gpu.json](results/gpu.json))."
    )


def attention_gpu_passage() -> str:
    gpu = results("attention_mechanisms/results/gpu.json")
    rows = {row["attention"]: row for row in gpu["rows"]}
    times = {name: f"{row['times_mha']['median']:.2f}" for name, row in rows.items()}
    mha = rows["MHA"]
    text = (
        "**At this length a smaller cache brings no speed on this GPU: GQA, MLA and SWA are slower than MHA**, at "
        f"{times['GQA, 4 groups']}, {times['MLA absorbed, R = 192']} and {times['SWA, W = 256']} of its speed. MHA "
        f"itself uses {mha['bytes_share']:.1%} of the speed of memory, and {mha['flops_share']:.2%} of the operations: "
        "what takes the time must be asking for one small operation after another from Python. GQA, MLA and SWA ask "
        f"for more of them, and transformers, with sdpa {times['transformers, sdpa']} times as fast as our MHA, for "
        "fewer."
    )
    return f"{attention_figures.decode_table(gpu)}\n\n{paragraph(text)}"


def model_gpu_passage() -> str:
    gpu = results("gpt_model/results/gpu.json")
    rows = {row["way"]: row for row in gpu["rows"]}
    speeds = {way: row["tokens_per_second"]["median"] for way, row in rows.items()}
    compiled = rows["FastDecoder, compiled"]
    text = (
        f"Compiled and recorded, the step is {compiled['times_transformers']['median']:.1f} times as fast as "
        f"transformers, and still at {compiled['ceiling_share']:.0%} of the memory ceiling: GPT-2 small is too small "
        "to keep this GPU busy one token at a time. int8, whose step makes bfloat16 weights of its "
        "integers, has "
        f"{speeds['FastDecoder, int8, compiled'] / speeds['FastDecoder, compiled']:.2f} of that speed. "
        "Not compiled, FastDecoder is slower than the model itself, at "
        f"{speeds['FastDecoder'] / speeds['GPT']:.2f} of its speed. In bfloat16 the compiled step wrote "
        f"{compiled['same_tokens_as_transformers']:.0%} of the tokens that transformers wrote, and all other ways "
        "wrote the same; the weights are random, so presumably rounding decides between tokens that are about "
        "equally likely."
    )
    return f"{model_figures.writing_table(gpu)}\n\n{model_figures.machine(gpu)}.\n\n{paragraph(text)}"


def training_gpu_passage() -> str:
    from pretraining.benchmark.gpu_step import gpu_table

    gpu, tests = results("pretraining/results/gpu.json"), results("results/gpu.json")
    machine, adamw = gpu["machine"], gpu["rows"][0]
    eager = re.findall(r"takes ([\d,]+) MB, the formula says ([\d,]+)", "\n".join(tests["said"]))
    assert all(measured == formula for measured, formula in eager)
    text = (
        f"GPT-2 small, {gpu['batch_size']} rows of {gpu['context_length']:,} tokens, bfloat16, compiled, on one "
        f"{machine['gpu']}, PyTorch {machine['torch']}. MFU is the share of the "
        f"{gpu['peak_flops_per_second'] / 1e12:.0f} TFLOP/s of the data sheet. The formula for memory, in "
        "[costs.py](../gpt_model/costs.py), is for steps that are not compiled. For those of a smaller model it was "
        f"right to the megabyte on this GPU ({eager[0][0]} MB measured, {eager[0][1]} by formula); the compiled step "
        f"of the table took {adamw['memory'] / adamw['memory_formula']:.0%} of it."
    )
    return f"{gpu_table(gpu)}\n\n{paragraph(text)}"


def chat_model_passage() -> str:
    """What `make chat-model` shows in the end."""
    blocks = []
    for row in results("finetuning/instruction/results/chat_model.json")["answers"]:
        before = textwrap.shorten(row["before"], 80, placeholder=" ...")
        blocks.append(f"{row['question']}\n  before  {before}\n  after   {row['after']}")
    return "```text\n" + "\n\n".join(blocks) + "\n```"


def experiments_passage() -> str:
    stored = results("finetuning/instruction/results/experiments.json")
    machine = stored["machine"]
    return (
        f"{experiments.table(stored)}\n\n"
        f"({stored['epochs']} passes each; one core of an {machine['cpu']}, PyTorch {machine['torch']}.)"
    )


def chat_passage() -> str:
    return engine_figures.tables(ROOT / "chat_ui/results")


def load_passage() -> str:
    stored = results("chat_ui/results/load.json")
    machine = stored["machine"]
    return f"{load.table(stored['rows'])}\n\n{machine['cpu']}, {machine['cores']} cores, PyTorch {machine['torch']}."


def soak_passage() -> str:
    stored = results("chat_ui/results/sockets.json")
    asked, seen, machine = stored["soak"], stored["result"], stored["machine"]
    samples = seen["memory_mib"]
    memory = [f"{samples[quarter * (len(samples) - 1) // 4]:.0f}" for quarter in range(5)]
    return paragraph(
        f"{seen['opened']} of {asked['sockets']} pages opened in {seen['seconds_to_open']:.1f} s. "
        f"{asked['talking']} of them at a time asked {asked['messages']:,} questions: {seen['complete']:,} answers "
        f"were complete and {seen['failed']} failed, in {seen['seconds']:.0f} s. The server's memory was "
        f"{', '.join(memory)} MiB at first and after each quarter "
        f"({machine['cpu']}, {machine['cores']} cores, PyTorch {machine['torch']})."
    )


# Each file that quotes measurements, and what it must hold.
PASSAGES: list[tuple[str, Callable[[], str]]] = [
    ("README.md", summary_passage),
    ("README.md", demo_passage),
    ("README.md", chat_model_passage),
    ("README.md", fresh_machine_passage),
    ("CONTRIBUTING.md", gpu_tests_passage),
    ("pretraining/README.md", speed_passage),
    ("pretraining/README.md", recipe_passage),
    ("pretraining/README.md", training_gpu_passage),
    ("finetuning/instruction/README.md", experiments_passage),
    ("pretraining/README.md", corpus_passage),
    ("working_with_text_data/README.md", tokenizer_passage),
    ("finetuning/classification/README.md", classification_passage),
    ("finetuning/classification/README.md", pools_passage),
    ("finetuning/classification/README.md", changes_passage),
    ("attention_mechanisms/results/README.md", attention_passage),
    ("attention_mechanisms/results/README.md", attention_gpu_passage),
    ("attention_mechanisms/README.md", variants_passage),
    ("gpt_model/results/README.md", model_passage),
    ("gpt_model/results/README.md", model_gpu_passage),
    ("chat_ui/results/README.md", chat_passage),
    ("chat_ui/results/README.md", load_passage),
    ("chat_ui/results/README.md", soak_passage),
]

LESSONS = [path for chapter in CHAPTERS[1:] for path in sorted(chapter.glob("[0-9]*.ipynb"))]
WORDS_PER_MINUTE = 150
CODE_LINES_PER_MINUTE = 20


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_lesson_is_listed_with_the_time_it_takes(lesson: Path) -> None:
    """Minutes to read follow from its length, give or take five; minutes to run are measured, and rounded up."""
    readme = (lesson.parent / "README.md").read_text(encoding="utf-8")
    listed = re.search(
        rf"\({lesson.name}\):[^*]*\*(Main path|Side trip); (\d+) minutes to read, (\d+) to run\.\*", readme
    )
    assert listed, "name it with '*Main path; 25 minutes to read, 1 to run.*'"
    length = {"markdown": 0, "code": 0}
    for cell in json.loads(lesson.read_bytes())["cells"]:
        source = "".join(cell["source"])
        length[cell["cell_type"]] += len(source.split() if cell["cell_type"] == "markdown" else source.splitlines())
    to_read = length["markdown"] / WORDS_PER_MINUTE + length["code"] / CODE_LINES_PER_MINUTE
    assert abs(int(listed[2]) - to_read) <= 5, f"about {to_read:.0f} minutes to read"
    seconds = results("results/lessons.json")["seconds"][lesson.relative_to(ROOT).as_posix()]
    assert int(listed[3]) == math.ceil(seconds / 60)


@pytest.mark.parametrize(("file", "passage"), PASSAGES)
def test_numbers_are_those_measured(file: str, passage: Callable[[], str]) -> None:
    assert passage() in (ROOT / file).read_text(encoding="utf-8"), f"should hold:\n{passage()}"


def commands(readme: Path) -> list[str]:
    """The lines of the shell blocks of a README."""
    blocks = re.findall(r"```sh\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


# How each command is run here; a command of a README that is not in this table fails a test.
FRESH_CLONE = {"python3 -m venv", ".venv/bin/pip", ".venv/bin/python -m pretraining.demo"}
IN_PLACE = {  # what to append, so that it is done in seconds
    "python -m working_with_text_data.train_tokenizer": "--vocab-size 300",
    "python -m working_with_text_data.prepare": "",
    "python -m working_with_text_data.inspect_tokens": "",
    "python -m pretraining.simple --data": "--steps 2 --compile off --d-model 32 --context-length 32",
    "python -m pretraining.evaluate": "",
    "python -m gpt_model.generate --run runs/mine": "--max-new-tokens 5",
    "python -m pretraining.simple --help": "",
    "python -m gpt_model.plan": "",
}
ELSEWHERE = {
    "make demo": "test_a_fresh_clone",
    "make chat-model": "test_train.py: the command in it, with a smaller run",
    "make chat": "tests/chat_ui: the command in it",
    "python -m finetuning.classification.baseline": "tests/finetuning/classification/test_baseline.py",
    "python -m finetuning.classification.train": "tests/finetuning/classification/test_train.py",
    "python -m finetuning.classification.predict": "tests/finetuning/classification/test_train.py",
    "python -m finetuning.classification.compare": "tests/finetuning/classification/test_train.py",
    "python -m finetuning.classification.ablations": "tests/finetuning/classification/test_ablations.py",
    "python -m finetuning.instruction.train": "test_train.py",
    "python -m finetuning.instruction.prepare": "test_quality.py",
    "python -m finetuning.instruction.dpo": "test_dpo.py",
    "python -m finetuning.instruction.reinforce": "test_reinforce.py",
    "python -m finetuning.instruction.evaluate": "test_evaluate.py",
    "python -m finetuning.instruction.human_eval": "test_human_eval.py",
    "python -m finetuning.instruction.experiments": "test_experiments.py",
    "python -m finetuning.instruction.gpu_speed": "test_gpu_speed.py",
    "python -m deployment.workspace": "tests/deployment/test_workspace.py, against a stand-in for Modal",
    "python -m deployment.modal_train": "tests/deployment/test_train.py, against a stand-in for Modal",
    "python -m deployment.download": "tests/deployment/test_train.py, against a stand-in for Modal",
    "python -m deployment.modal_serve": "tests/deployment/test_serve.py, against a stand-in for Modal",
    "python -m deployment.costs": "tests/deployment/test_costs.py",
    "python -m deployment.stand_in": "tests/deployment/test_stand_in.py",
    "python -m deployment.storage": "tests/deployment/test_storage.py",
    "python -m deployment.launch.scale": "tests/deployment/test_launch.py",
    "make lint": "test_layering.py::test_style runs the same",
    "make notebook": "test_make_lists_its_targets: it opens a browser",
    "make notebooks": "test_notebooks.py runs the same",
    "make test": "excepted: this is it",
    "make exhaustive": "excepted: so is this",
    "make clean": "test_a_fresh_clone",
    "PIP_EXTRA_INDEX_URL=": "needs a host that is no package registry of the test machine's",
    "python -m working_with_text_data.benchmark": "test_benchmark.py",
    "python -m attention_mechanisms.benchmark": "test_benchmark.py",
    "python -m pretraining.variants": "test_variants.py: an hour on two idle cores",
    "python -m pretraining.benchmark": "half an hour: its result files are compared instead",
    "python -m gpt_model.benchmark": "test_benchmark.py",
    "python -m gpt_model.convert": "test_smaller_cache.py",
    "python -m gpt_model.generate --run runs/demo": "test_a_fresh_clone",
    "python -m gpt_model.generate --pretrained": "test_generate.py, from a folder: the download needs a network",
    "python -m pretraining.hellaswag": "test_hellaswag.py",
    "python -m pretraining.prepare_gutenberg": "test_corpus_gutenberg.py",
    "python -m pretraining.prepare_smollm": "test_corpus_pipeline.py",
    "python -m pretraining.watch": "test_watch.py",
    "python -m pretraining.advanced": "test_advanced.py",
    'python -c "from working_with_text_data.minbpe import GPT2Tokenizer': "test_advanced.py",
    "torchrun --standalone": "test_advanced.py, which starts torchrun's module",
    "torchrun --nnodes 2": "test_two_nodes.py",
    "python -m utils.gpt2_download": "test_gpt2_download.py",
    "python -m chat_ui.server": "tests/chat_ui/test_browser.py and test_replicas.py",
    "python -m chat_ui.accounts": "tests/chat_ui/test_parts.py",
    "docker compose": "needs Docker; tests/chat_ui/test_docker.py and test_replicas.py start what it starts",
    "python -m chat_ui.terminal": "tests/chat_ui/test_terminal.py",
    "python -m chat_ui.load": "tests/chat_ui/test_api.py",
    "python -m chat_ui.benchmark": "some minutes: its result files are compared instead",
}


@pytest.mark.parametrize("readme", [folder / "README.md" for folder in CHAPTERS], ids=lambda p: p.parent.name)
def test_every_command_is_run_by_a_test(readme: Path) -> None:
    for command in commands(readme):
        assert any(command.startswith(known) for known in [*FRESH_CLONE, *IN_PLACE, *ELSEWHERE]), command


@pytest.mark.slow
def test_commands_run_on_a_users_own_text(tmp_path: Path, persuasion: str) -> None:
    """In order, in a folder of their own, with my_text.txt as the README has it."""
    (tmp_path / "my_text.txt").write_text(persuasion[:80_000], encoding="utf-8")
    chapters = (ROOT, ROOT / "working_with_text_data", ROOT / "gpt_model")
    shown = [line for folder in chapters for line in commands(folder / "README.md")]
    lines = [line for line in dict.fromkeys(shown) if any(line.startswith(known) for known in IN_PLACE)]
    assert len(lines) >= 5
    for line in lines:
        extra = next(extra for known, extra in IN_PLACE.items() if line.startswith(known))
        python, _, *command = shlex.split(f"{line} {extra}", comments=True)
        assert python == "python"
        result = run(*command, folder=tmp_path)
        assert result.returncode == 0, f"{line}\n{result.stderr[-2000:]}"
        assert result.stdout or result.stderr


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "CONTRIBUTING.md", *(folder / "README.md" for folder in CHAPTERS)):
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def shell(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a stranger would, who has no environment active."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # of what pip installs, Python compiles what it imports, and does not need the rest compiled: half of pip's time
    environment = {**inherited, "PIP_COMPILE": "0", "PYTHONDONTWRITEBYTECODE": ""}
    return subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_make_lists_its_targets() -> None:
    listed = shell(ROOT, "make").stdout
    for target in ("demo", "chat-model", "chat", "test", "exhaustive", "lint", "notebooks", "notebook", "clean"):
        assert f"make {target} " in listed


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a stranger gets: the files, and no environment."""
    left_out = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, tmp_path / "clone", ignore=left_out)
    return tmp_path / "clone"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('case "$1" in -V) echo Python 3.9.2;; *) exit 1;; esac', "error: Python 3.11 or newer is needed"),
        ('case "$2" in *version_info*) exit 0;; *) exit 1;; esac', "cannot make virtual environments"),
    ],
)
def test_an_unsuitable_python_is_named_in_one_line(clone: Path, script: str, message: str) -> None:
    old = clone.parent / "python-for-this-test"
    old.write_text(f"#!/bin/sh\n{script}\n")
    old.chmod(0o755)
    result = shell(clone, f"make demo PYTHON={old}")
    assert result.returncode
    lines = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (clone / ".venv" / "ready").exists()


@pytest.mark.slow
@pytest.mark.parametrize("anew", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_a_fresh_clone(clone: Path, anew: bool) -> None:
    """With make, then in plain pip lines: day by day in the same environment, exhaustively in one of their own."""
    installs_by_make_demo(clone)
    if anew:
        make_clean(clone)
    goes_on_in_plain_pip_lines(clone)
    make_clean(clone)


def installs_by_make_demo(clone: Path) -> None:
    """`make demo` sets up all it needs; the second call starts at once; the core has no test dependencies."""
    demo = "make demo ARGS='--steps 3'"
    first = shell(clone, demo)
    assert first.returncode == 0, first.stderr[-3000:]
    assert "Bits per byte" in first.stdout
    assert "Warning" not in first.stderr
    second = shell(clone, demo)
    assert "setting up" not in second.stdout
    assert first.stdout.endswith(second.stdout.split("--steps 3\n", 1)[1])
    assert "going on" not in second.stderr
    assert not list((clone / ".venv").glob("lib/python*/site-packages/pytest"))
    # a change of the lock, and nothing else, installs anew
    planned = "make --dry-run demo"
    assert "pip install" not in shell(clone, planned).stdout
    lock = (clone / "requirements.lock").read_text()
    (clone / "requirements.lock").write_text(f"{lock}\n")
    assert "pip install -q -c requirements.lock" in shell(clone, planned).stdout
    (clone / "requirements.lock").write_text(lock)


def make_clean(clone: Path) -> None:
    """`make clean` deletes the environment and leaves the model."""
    assert shell(clone, "make clean").returncode == 0
    assert not (clone / ".venv").exists()
    assert (clone / "runs" / "demo" / "results.json").exists()


def goes_on_in_plain_pip_lines(clone: Path) -> None:
    """The README's lines without make show the same demo's results, and its model continues a prompt."""
    lines = [line for line in commands(clone / "README.md") if line.startswith(("python3 -m venv", ".venv/bin/"))]
    assert len(lines) == 4
    generate = next(line for line in commands(clone / "README.md") if line.startswith("python -m gpt_model.generate"))
    for line in [*lines[:-1], f"{lines[-1]} --steps 3", f".venv/bin/{generate} --max-new-tokens 4"]:
        result = shell(clone, line)
        assert result.returncode == 0, f"{line}\n{result.stderr[-3000:]}"
    assert result.stdout


if __name__ == "__main__":
    for _, passage in PASSAGES:
        print(passage(), end="\n\n")
