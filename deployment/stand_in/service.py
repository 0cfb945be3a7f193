"""How the stand-in for Modal's servers is spoken to: the protocol of the installed client, procedure by procedure."""

from collections.abc import Callable, Coroutine
from typing import Any

import grpclib
import grpclib.const
from modal_proto import api_grpc

from deployment.stand_in.objects import Objects


class Service:
    """All remote procedures: those the plane has, and an empty answer for the rest; knows which container asks."""

    def __init__(self, plane: Objects, task: str | None) -> None:
        self.plane = plane
        self.task = task

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        base = type("Base", (api_grpc.ModalClientBase,), {})
        base.__abstractmethods__ = frozenset()
        return {
            path: grpclib.const.Handler(
                self._handle(path.rpartition("/")[2], handler), handler.cardinality, handler.request_type,
                handler.reply_type,
            )
            for path, handler in base().__mapping__().items()
        }  # fmt: skip

    def _handle(self, name: str, handler: Any) -> Callable[[Any], Coroutine[Any, Any, None]]:
        procedure = getattr(self.plane, name, None)
        single = handler.cardinality is grpclib.const.Cardinality.UNARY_UNARY

        async def answer(stream: Any) -> None:
            request = await stream.recv_message()
            self.plane.asked.append((name, request))
            if procedure is None and not single:
                raise grpclib.GRPCError(grpclib.Status.UNIMPLEMENTED, name)
            if not single:
                await procedure(request, stream)
            elif procedure is None:
                await stream.send_message(handler.reply_type())
            else:
                await stream.send_message(await procedure(request, self.task))

        return answer
