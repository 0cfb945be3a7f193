# ruff: noqa: N802 - procedures have the names of the protocol
"""A stand-in for Modal's servers on this machine: it takes what Modal's own client sends, and runs it.

It speaks the protocol of the installed client (`modal_proto`) over a Unix socket. Functions run in Modal's own
container runtime, over the files that the client uploaded and nothing else of the project; see containers.py. What
Modal refuses is refused, see rules.py. Volumes are what they are there: a container has its own view, which others see
once it is committed, and which shows what others committed once it is reloaded.
"""

import asyncio
import http.server
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote

import grpclib.server
import modal
from google.protobuf.empty_pb2 import Empty
from modal.client import _Client
from modal_proto import api_pb2 as pb

from deployment.stand_in.calls import Calls
from deployment.stand_in.containers import Container, listen, why_not
from deployment.stand_in.objects import BLOCK
from deployment.stand_in.rules import check_function

GRACE = 30  # seconds from the SIGINT of a preemption to the SIGKILL, as Modal waits


class ControlPlane(Calls):
    """See the module. Use `signed_in()`, or `start()`; `close()` ends all containers and forgets all."""

    def __init__(self) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="modal")))
        self.listeners: dict[str, socket.socket] = {}
        self.one_visitor = threading.Lock()
        self.url = f"unix://{self.root}/socket"
        self.server: grpclib.server.Server
        self.thread: threading.Thread
        self.files: _FileServer

    # -- life

    @classmethod
    @contextmanager
    def signed_in(cls) -> Iterator["ControlPlane"]:
        """Start a control plane, and have this process, and those that it starts, use it until the end.

        Raises:
            RuntimeError: if containers cannot be made here; it says why.
        """
        if reason := why_not():
            raise RuntimeError(reason)
        with (
            closing(cls.start()) as plane,
            patch.dict(os.environ, plane.environment()),
            patch.object(_Client, "_client_from_env", None),  # a client is made once per process
        ):
            yield plane
            with modal.Client.from_env():
                pass  # and it is closed

    @classmethod
    def start(cls) -> "ControlPlane":
        """Return a control plane that serves on a thread of its own."""
        plane = cls()
        ready = threading.Event()

        def serve() -> None:
            asyncio.set_event_loop(plane.loop)
            plane.server = plane.loop.run_until_complete(plane.serve(None))
            ready.set()
            plane.loop.run_forever()
            plane.loop.run_until_complete(plane._stop())
            plane.loop.close()

        plane.thread = threading.Thread(target=serve, daemon=True)
        plane.thread.start()
        plane.files = _FileServer(plane.root)
        if not ready.wait(60):
            raise RuntimeError("the stand-in for Modal did not start within a minute")
        return plane

    async def _stop(self) -> None:
        for server in [self.server, *(task.server for task in self.tasks.values())]:
            server.close()
            await server.wait_closed()
        waiting = asyncio.all_tasks() - {asyncio.current_task()}
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.sleep(0)  # transports are closed in the next round of the loop

    def close(self) -> None:
        """End all containers, and forget all that there was."""
        for listener in self.listeners.values():
            listener.close()
        for task in list(self.tasks.values()):
            task.container.kill()
        for task in list(self.tasks.values()):
            task.container.join()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(60)
        self.files.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        """Return what makes a client use this control plane."""
        return {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": "ak-test",
            "MODAL_TOKEN_SECRET": "as-test",
            "MODAL_CONFIG_PATH": str(self.root / "no-config"),
        }

    def output(self) -> str:
        """Return all that containers have printed."""
        for task in list(self.tasks.values()):
            task.container.catch_up()
        return "".join(line for _, _, line in self.lines)

    def preempt(self) -> None:
        """Take the machine from all that runs, as Modal may at any moment: SIGINT, and SIGKILL after a while."""
        for task in self.running():
            task.container.interrupt()
            timer = threading.Timer(GRACE, task.container.kill)
            timer.daemon = True  # nobody waits for it
            timer.start()

    # -- servers: a machine is started when somebody comes

    async def ContainerServerLifecycleReady(self, _: Any, task: str | None) -> Empty:
        self.tasks[task or ""].greeted = True
        return Empty()

    async def AppPublish(self, request: Any, task: str | None) -> pb.AppPublishResponse:
        """What is deployed anew replaces what runs."""
        for running in self.running():
            if running.function in request.function_ids.values() and self.functions[running.function].is_server:
                running.container.kill()
        return await super().AppPublish(request, task)

    async def AppStop(self, request: Any, task: str | None) -> Empty:
        for running in self.running():
            if self.app_of[running.function] == request.app_id:
                running.container.kill()
        return await super().AppStop(request, task)

    def _serving(self, function: str) -> tuple[Container, int]:
        """Return a container that serves, and its port; called for each visitor, on a thread of its own."""
        if self.app_of[function] in self.stopped:
            raise LookupError(function)
        with self.one_visitor:
            found = [task for task in self.running() if task.function == function]
            if not found:
                starting = asyncio.run_coroutine_threadsafe(self.start_container(function, 0, []), self.loop)
                found = [starting.result(60)]
        until = time.monotonic() + self.functions[function].http_config.startup_timeout
        while not found[0].greeted:
            if time.monotonic() > until or found[0].ended:
                raise LookupError(function)
            time.sleep(0.05)
        return found[0].container, self.functions[function].http_config.port

    async def AppGetLogs(self, request: Any, stream: Any) -> None:
        """All lines of an app or a call, and those to come until it is over."""
        sent = int(request.last_entry_id or 0)
        until = time.monotonic() + (request.timeout or 55)
        while time.monotonic() < until:
            over = self._is_over(request)
            fresh, first = self.lines[sent:], sent
            sent += len(fresh)
            for number, (app, call, line) in enumerate(fresh, start=first + 1):
                if app == request.app_id and request.function_call_id in ("", call):
                    logs = pb.TaskLogs(data=line, file_descriptor=pb.FILE_DESCRIPTOR_STDOUT, function_call_id=call)
                    await stream.send_message(pb.TaskLogsBatch(entry_id=str(number), items=[logs]))
            if over:
                break
            await asyncio.sleep(0.05)
        await stream.send_message(pb.TaskLogsBatch(app_done=self._is_over(request)))

    def _is_over(self, request: Any) -> bool:
        call = self.calls.get(request.function_call_id)
        return bool(call.outputs) if call else request.app_id in self.stopped

    async def AppFetchLogs(self, request: Any, _: str | None) -> pb.AppFetchLogsResponse:
        lines = [
            pb.TaskLogs(data=line, file_descriptor=pb.FILE_DESCRIPTOR_STDOUT, timestamp=time.time())
            for app, call, line in self.lines
            if app == request.app_id and request.function_call_id in ("", call)
        ]
        return pb.AppFetchLogsResponse(batches=[pb.TaskLogsBatch(items=lines[-(request.limit or len(lines)) :])])

    async def FunctionCreate(self, request: Any, task: str | None) -> pb.FunctionCreateResponse:
        ranked = request.function_data.ranked_functions
        for function in [rank.function for rank in ranked] or [request.function]:
            check_function(function)
        created = await super().FunctionCreate(request, task)
        id_ = created.function_id
        if self.functions[id_].is_server and id_ not in self.listeners:
            self.listeners[id_] = listen(lambda: self._serving(id_))
            self.served[id_] = f"http://127.0.0.1:{self.listeners[id_].getsockname()[1]}"
        created.handle_metadata.CopyFrom(self.handle(id_))
        return created


class _FileServer:
    """Serves what is committed to volumes, as Modal does from where it stores blocks."""

    def __init__(self, root: Path) -> None:
        class Block(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path, _, start = self.path.partition("?")
                with (root / "committed" / unquote(path).lstrip("/")).open("rb") as file:
                    file.seek(int(start))
                    block = file.read(BLOCK)
                self.send_response(200)
                self.send_header("Content-Length", str(len(block)))
                self.end_headers()
                self.wfile.write(block)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Block)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
