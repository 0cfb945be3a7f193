# ruff: noqa: N802 - procedures have the names of the protocol
"""What the stand-in for Modal's servers does with a call: it starts a container, and gives it work until all is done.

A call whose container is lost, or whose function fails, goes to a new container, as often as Modal would do it.
"""

import asyncio
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpclib
import grpclib.server
import torch
from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2 as pb

from deployment.cloud import HOME
from deployment.stand_in.containers import Container, image_environment
from deployment.stand_in.objects import Objects
from deployment.stand_in.service import Service

MOST_LOST = 5  # times that an input is given to a new container after its own was lost
WAIT = 5  # seconds that a container's request for work is held


@dataclass
class Call:
    """A call of a function, by spawn or remote."""

    id: str
    function: str
    inputs: dict[str, pb.FunctionGetInputsItem] = field(default_factory=dict)
    outputs: list[pb.FunctionGetOutputsItem] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    cancelled: bool = False


@dataclass
class Task:
    """A container at work: what it runs, its place in its cluster, and the inputs that it has taken."""

    id: str
    function: str
    rank: int
    container: Container
    server: grpclib.server.Server
    group: list["Task"]
    taken: dict[str, Call] = field(default_factory=dict)
    waiting: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    greeted: bool = False
    ended: bool = False


class Calls(Objects):
    """The procedures of calls, and of the containers that they run in."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.tasks: dict[str, Task] = {}
        self.calls: dict[str, Call] = {}
        self.by_input: dict[str, Call] = {}
        self.queues: dict[str, asyncio.Queue[str]] = defaultdict(asyncio.Queue)
        self.lines: list[tuple[str, str, str]] = []  # app, call, line
        self.one_mirror = asyncio.Lock()  # nobody deletes a folder that is empty just now, while another fills it
        self.loop = asyncio.new_event_loop()

    async def serve(self, task: str | None) -> grpclib.server.Server:
        """Offer all procedures at a socket: one for clients, or that of a container, by which it is known."""
        path = self.root / "socket" if task is None else self.root / task / "socket"
        path.parent.mkdir(exist_ok=True)
        server = grpclib.server.Server([Service(self, task)])
        await server.start(path=str(path))
        return server

    def running(self) -> list[Task]:
        """Return the containers that have not ended."""
        return [task for task in list(self.tasks.values()) if not task.ended]

    # -- calls

    async def FunctionMap(self, request: Any, _: str | None) -> pb.FunctionMapResponse:
        call = Call(self.new("fc"), request.function_id)
        self.calls[call.id] = call
        items = [self._put(call, item) for item in request.pipelined_inputs]
        return pb.FunctionMapResponse(
            function_call_id=call.id, function_call_jwt=call.id, pipelined_inputs=items, max_inputs_outstanding=1000
        )

    async def FunctionPutInputs(self, request: Any, _: str | None) -> pb.FunctionPutInputsResponse:
        call = self.calls[request.function_call_id]
        return pb.FunctionPutInputsResponse(inputs=[self._put(call, item) for item in request.inputs])

    def _put(self, call: Call, item: Any) -> pb.FunctionPutInputsResponseItem:
        name = self.new("in")
        call.inputs[name] = pb.FunctionGetInputsItem(
            input_id=name, function_call_id=call.id, input=item.input, function_map_idx=item.idx
        )
        self.by_input[name] = call
        self._enqueue(call, name)
        return pb.FunctionPutInputsResponseItem(idx=item.idx, input_id=name, input_jwt=name)

    def _enqueue(self, call: Call, name: str) -> None:
        function = self.functions[call.function]
        size = max(1, function._experimental_group_size)
        if size > 1 or function.single_use_containers or not self._idle(call.function):
            group: list[Task] = []
            self.loop.create_task(self._spawn(call.function, size, group, name))
        else:
            self.queues[call.function].put_nowait(name)

    def _idle(self, function: str) -> bool:
        return any(task.function == function and not task.taken for task in self.running())

    async def _spawn(self, function: str, size: int, group: list[Task], name: str) -> None:
        for rank in range(size):
            group.append(await self.start_container(function, rank, group))
            group[-1].waiting.put_nowait(name)

    async def start_container(self, function: str, rank: int, group: list[Task]) -> Task:
        id_, definition = self.new("ta"), self.functions[function]
        server = await self.serve(id_)
        folder = self.root / id_
        volumes = {mount.volume_id: (mount.mount_path, mount.read_only) for mount in definition.volume_mounts}
        arguments = pb.ContainerArguments(
            task_id=id_, function_id=function, app_id=self.app_of[function], function_def=definition,
            app_layout=self.app_layout(self.app_of[function]), environment_name="main", checkpoint_id="ch-1",
        )  # fmt: skip
        (folder / "arguments").write_bytes(arguments.SerializeToString())
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(HOME),
            "PYTHONPATH": str(HOME),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),  # which results may depend on in the last bit
            "GLOO_SOCKET_IFNAME": "lo",
            **image_environment(self.image_commands(definition.image_id)),
            **{name: value for secret in definition.secret_ids for name, value in self.secrets[secret].items()},
            "MODAL_SERVER_URL": f"unix://{folder}/socket",
            "MODAL_CONFIG_PATH": "/nonexistent",
            "MODAL_TASK_ID": id_,
            "MODAL_IS_REMOTE": "1",
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(folder / "arguments"),
            "MODAL_CLOUD_PROVIDER": "CLOUD_PROVIDER_AWS",
        }
        task = Task(
            id_, function, rank, Container(folder, self.home(definition.mount_ids), volumes, environment), server, group
        )
        for volume in volumes:
            await self._mirror(task.container.reload, volume)
        self.tasks[id_] = task
        task.container.start(
            lambda line: self._heard(task, line),
            lambda: self._soon(self._exited, task),
            peer=group[0].container if group else None,
        )
        return task

    def _soon(self, function: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self.loop.call_soon_threadsafe(function, *arguments)

    def _heard(self, task: Task, line: str) -> None:
        call = next((call.id for call in list(task.taken.values())), "")
        self.lines.append((self.app_of[task.function], call, line))

    def _exited(self, task: Task) -> None:
        """A container is gone: what it had taken and not answered goes to a new one, as after a preemption."""
        task.ended = True
        task.server.close()
        for other in task.group:
            if not other.ended and other is not task and task.taken:
                other.container.kill()
        for name, call in task.taken.items():
            lost = call.lost.get(name, 0) + 1
            if task.rank == 0 and not call.cancelled and lost <= MOST_LOST:
                call.lost[name] = lost
                self._enqueue(call, name)
        task.taken.clear()

    async def FunctionGetInputs(self, request: Any, task: str | None) -> pb.FunctionGetInputsResponse:
        mine = self.tasks[task or ""]
        sources = (
            [mine.waiting] if mine.group or not mine.waiting.empty() else [mine.waiting, self.queues[mine.function]]
        )
        until = time.monotonic() + WAIT
        while time.monotonic() < until:
            for queue in sources:
                if not queue.empty():
                    name = queue.get_nowait()
                    call = self.by_input[name]
                    mine.taken[name] = call
                    return pb.FunctionGetInputsResponse(inputs=[call.inputs[name]])
            await asyncio.sleep(0.02)
        return pb.FunctionGetInputsResponse()

    async def FunctionPutOutputs(self, request: Any, task: str | None) -> Empty:
        mine = self.tasks[task or ""]
        await asyncio.to_thread(mine.container.catch_up)  # what it said before belongs to the call that ends here
        for output in request.outputs:
            call = mine.taken.pop(output.input_id, None)
            if call is None or mine.rank > 0 or call.cancelled:
                continue
            good = output.result.status == pb.GenericResult.GENERIC_STATUS_SUCCESS
            failed = call.failures.get(output.input_id, 0)
            if not good and failed < self.functions[call.function].retry_policy.retries:
                call.failures[output.input_id] = failed + 1
                self._enqueue(call, output.input_id)
                continue
            item = pb.FunctionGetOutputsItem(
                result=output.result, input_id=output.input_id, data_format=output.data_format
            )
            item.idx = call.inputs[output.input_id].function_map_idx
            call.outputs.append(item)
        return Empty()

    async def FunctionGetOutputs(self, request: Any, _: str | None) -> pb.FunctionGetOutputsResponse:
        call = self.calls[request.function_call_id]
        until = time.monotonic() + min(request.timeout, 20)
        while not call.outputs and time.monotonic() < until:
            await asyncio.sleep(0.02)
        return pb.FunctionGetOutputsResponse(
            outputs=call.outputs, last_entry_id="1", num_unfinished_inputs=len(call.inputs) - len(call.outputs)
        )

    async def FunctionCallCancel(self, request: Any, _: str | None) -> Empty:
        call = self.calls[request.function_call_id]
        call.cancelled = True
        for task in self.running():
            if call in task.taken.values() and request.terminate_containers:
                task.container.kill()
        if not call.outputs:
            result = pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_TERMINATED, exception="cancelled")
            call.outputs = [pb.FunctionGetOutputsItem(result=result, input_id=name) for name in call.inputs]
        return Empty()

    async def FunctionCallFromId(self, request: Any, _: str | None) -> pb.FunctionCallFromIdResponse:
        call = self.calls.get(request.function_call_id)
        if call is None:
            raise grpclib.GRPCError(grpclib.Status.NOT_FOUND, f"no function call {request.function_call_id}")
        found = pb.FunctionCallFromIdResponse(function_call_id=call.id, num_inputs=len(call.inputs))
        found.metadata.app_id = self.app_of[call.function]
        found.metadata.function_id = call.function
        return found

    async def TaskClusterHello(self, request: Any, task: str | None) -> pb.TaskClusterHelloResponse:
        mine = self.tasks[task or ""]
        mine.greeted = True
        size = self.functions[mine.function]._experimental_group_size
        while len(mine.group) < size or not all(other.greeted for other in mine.group):
            await asyncio.sleep(0.02)
        return pb.TaskClusterHelloResponse(
            cluster_id=f"cu-{mine.function}", cluster_rank=mine.rank,
            container_ips=["::1"] * size, container_ipv4_ips=["127.0.0.1"] * size,
        )  # fmt: skip

    # -- what containers ask for

    async def VolumeCommit(self, request: Any, task: str | None) -> pb.VolumeCommitResponse:
        container = self.tasks[task or ""].container
        if not container.volumes[request.volume_id][1]:
            await self._mirror(container.commit, request.volume_id)
        return pb.VolumeCommitResponse(skip_reload=True)

    async def VolumeReload(self, request: Any, task: str | None) -> Empty:
        container = self.tasks[task or ""].container
        await self._mirror(container.reload, request.volume_id)
        return Empty()

    async def _mirror(self, mirror: Callable[[str, Path], None], volume: str) -> None:
        async with self.one_mirror:
            await asyncio.to_thread(mirror, volume, self.committed(volume))

    async def TunnelStart(self, request: Any, task: str | None) -> pb.TunnelStartResponse:
        port = self.tasks[task or ""].container.tunnel(request.port)
        if request.unencrypted:
            return pb.TunnelStartResponse(host="127.0.0.1", port=0, unencrypted_host="127.0.0.1", unencrypted_port=port)
        return pb.TunnelStartResponse(host="127.0.0.1", port=port)
