"""What goes wrong between here and Modal is one line; what leaves this machine holds no secrets."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import modal
import pytest

from deployment import cloud, modal_serve, modal_train, modal_workspace, workspace
from deployment.cloud import ROOT, one_line_errors, stays_here
from deployment.stand_in.control_plane import ControlPlane
from utils.files import InputError

CHAPTER = sorted((ROOT / "deployment").rglob("*"))
SOURCES = [
    path
    for path in CHAPTER
    if path.suffix in (".py", ".sh", ".sbatch", ".yaml", ".yml", ".json", "") and path.is_file()
]


@pytest.mark.slow
def test_no_account_and_no_network(plane: ControlPlane, tmp_path: Path) -> None:
    """In processes of their own, since a process signs in once; nothing is written."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MODAL_")}
    nowhere = {**inherited, "PYTHONPATH": str(ROOT), "MODAL_CONFIG_PATH": f"{tmp_path}/none"}
    nowhere["MODAL_SERVER_URL"] = f"unix://{tmp_path}/nobody"
    with_server = {**nowhere, "MODAL_SERVER_URL": plane.url}
    signed_in = {**nowhere, "MODAL_TOKEN_ID": "ak-x", "MODAL_TOKEN_SECRET": "as-x"}
    for environment, command, message in [
        (with_server, ["deployment.workspace", "up"], "error: cannot start a workspace: this machine is not signed in"),
        (signed_in, ["deployment.download"], "error: cannot download runs/demo: Modal cannot be reached"),
    ]:
        result = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.splitlines()[-1].startswith(message)
        assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
    # Modal has several addresses, of which one may be down
    either = {**signed_in, "MODAL_SERVER_URL": f"unix://{tmp_path}/nobody,{plane.url}"}
    command = [sys.executable, "-m", "deployment.workspace", "status"]
    result = subprocess.run(command, cwd=tmp_path, env=either, capture_output=True, text=True, check=True)
    assert result.stdout == "workspace main is not up\n"


def test_debian_has_what_images_install() -> None:
    """In its main section, which is all that images of Python and of micromamba ask."""
    source = "".join(path.read_text() for path in (ROOT / "deployment").glob("*.py"))
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    installed = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "apt_install"]
    packages = {argument.value for call in installed for argument in call.args if isinstance(argument, ast.Constant)}
    assert {"git", "restic", "openssh-server"} <= packages
    if shutil.which("apt-cache") is None:
        pytest.skip("there is no apt-cache")
    known = subprocess.run(["apt-cache", "madison", *packages], capture_output=True, text=True, check=True).stdout
    if not known:
        pytest.skip("apt knows no packages before apt-get update")
    assert packages == {line.split("|")[0].strip() for line in known.splitlines() if "/main " in line}


def test_each_address_of_modal_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that its client has by itself, without any settings of the user."""
    tried = []

    def connect(address: tuple[str, int], timeout: float) -> None:
        tried.append(address)
        raise OSError("no network")

    monkeypatch.delenv("MODAL_SERVER_URL", raising=False)
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.setattr("deployment.cloud.socket.create_connection", connect)
    with pytest.raises(InputError, match="Modal cannot be reached"), one_line_errors("do it"):
        pass
    assert ("api.modal.com", 443) in tried
    assert all(re.fullmatch(r"[a-z0-9.]+", host) for host, _ in tried)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (modal.exception.AuthError("no token"), "cannot do it: this machine is not signed in to Modal (no token)"),
        (modal.exception.ConnectionError("down\\nagain"), "Modal cannot be reached (down"),
        (modal.exception.NotFoundError("Secret 'x' not found."), "Modal does not have it: Secret 'x' not found"),
        (modal.exception.InvalidError("no GPU"), "Modal refuses: no GPU"),
    ],
)
def test_modals_errors_are_one_line(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployment.cloud._reach", lambda: None)  # or it would be said that there is no network
    with pytest.raises(InputError, match=re.escape(said)) as caught, one_line_errors("do it"):
        raise error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", [".env", "a/.env", ".git/config", "x.ipynb", "solutions/x.py", "stand_in/x.py", "__pycache__/a.pyc"]
)
def test_what_stays_here(name: str) -> None:
    assert stays_here(Path(name))
    assert not stays_here(Path(name.replace(".env", "env.py").replace(".git", "git"))) or name not in (".env", "a/.env")


def test_code_and_what_it_reads_is_uploaded() -> None:
    for name in ("gpt.py", "corpus/persuasion.txt", "results/gpu.json", "public/style.css"):
        assert not stays_here(Path(name))


def test_nothing_is_fetched_and_run_unseen() -> None:
    """No `curl | sh`, no version that moves, no password on a command line."""
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(curl|wget)[^\n]*\|\s*(ba)?sh", text), path
        assert not re.search(r"--(password|token)[ =]\S", text), path
        assert ":latest" not in text, path
        assert not re.search(r"(ak|as|hf|sk)-[A-Za-z0-9]{16,}", text), path


def test_what_the_image_installs_is_pinned() -> None:
    assert re.fullmatch(r"[0-9a-f]{128}", modal_workspace.CODE_SERVER_SHA512)
    assert re.fullmatch(r"\d+\.\d+\.\d+", modal_workspace.CODE_SERVER)
    assert re.fullmatch(r"[\w-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}", modal_workspace.NODE)
    assert all(re.fullmatch(r"[\w-]+\.[\w-]+@[\d.]+", name) for name in modal_workspace.EXTENSIONS)
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert all("==" in line for line in lines)


def test_each_app_asks_for_no_more_than_it_needs() -> None:
    """Least privilege: training gets no secret, serving only reads what was trained."""
    _, train = modal_train.make_app(modal_train.Config(), modal_train.job_of(modal_train.Config()))
    assert train.info().secrets == []
    _, serve = modal_serve.make_app(modal_serve.Config())
    assert serve.info().secrets == ["Secret.from_dict([CHAT_VOLUME, CHAT_COMMAND, CHAT_URL])"]  # its plain variables
    assert serve.info().volumes["/vol"].read_only


def test_the_editor_listens_to_nobody_but_the_gateway() -> None:
    command = modal_workspace.EDITOR
    assert command[command.index("--socket") + 1] == str(modal_workspace.SOCKET)
    assert "--bind-addr" not in command


def test_modules_of_the_chapter_are_known() -> None:
    assert {path.name for path in (ROOT).iterdir() if (path / "__init__.py").exists()} - {"tests"} == set(
        cloud.PACKAGES
    )
    assert workspace.STATES == modal_workspace.STATES
