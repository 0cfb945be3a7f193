# ruff: noqa: N802 - procedures have the names of the protocol
"""What the stand-in for Modal's servers keeps: apps, functions, images, files, volumes, secrets and dictionaries."""

import hashlib
import itertools
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import grpclib
from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2 as pb

from deployment.cloud import HOME

CREATE = {
    pb.OBJECT_CREATION_TYPE_CREATE_IF_MISSING,
    pb.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS,
    pb.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS,
    pb.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP,
    pb.OBJECT_CREATION_TYPE_EPHEMERAL,
}
NO_CHECKSUM = "0" * 64
BLOCK = 8 << 20  # bytes of a file that are fetched at once
MOST_BYTES = 2 << 20  # of an argument that is sent with a call


def missing(what: str) -> grpclib.GRPCError:
    return grpclib.GRPCError(grpclib.Status.NOT_FOUND, f"{what} not found")


class Objects:
    """The procedures that create, look up and change things; their names are the protocol's."""

    files: Any
    """What serves the folder "committed" over HTTP, at its `url`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.numbers = itertools.count(1)
        self.asked: list[tuple[str, Any]] = []
        self.named: dict[tuple[str, str], str] = {}
        self.functions: dict[str, pb.Function] = {}
        self.app_of: dict[str, str] = {}
        self.layouts: dict[str, pb.AppPublishRequest] = {}
        self.deployed: dict[str, str] = {}
        self.stopped: set[str] = set()
        self.images: dict[str, pb.Image] = {}
        self.uploads: dict[str, bytes] = {}
        self.mounts: dict[str, list[pb.MountFile]] = {}
        self.secrets: dict[str, dict[str, str]] = {}
        self.dicts: dict[str, dict[bytes, bytes]] = {}
        self.served: dict[str, str] = {}

    def new(self, prefix: str) -> str:
        return f"{prefix}-{next(self.numbers)}"

    def of(self, name: str) -> list[Any]:
        """Return all requests of a procedure."""
        return [request for asked, request in self.asked if asked == name]

    def _named(self, prefix: str, request: Any) -> tuple[str, bool]:
        """Return the id of a named object, and whether it is new."""
        key = (prefix, request.deployment_name)
        if request.deployment_name and key in self.named:
            if request.object_creation_type == pb.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
                raise grpclib.GRPCError(grpclib.Status.ALREADY_EXISTS, f"{request.deployment_name!r} exists")
            return self.named[key], False
        if request.deployment_name and request.object_creation_type not in CREATE:
            raise missing(f"{prefix} {request.deployment_name!r}")
        id_ = self.new(prefix)
        if request.deployment_name:
            self.named[key] = id_
        return id_, True

    # -- apps

    async def EnvironmentGetOrCreate(self, request: Any, _: Any) -> pb.EnvironmentGetOrCreateResponse:
        settings = pb.EnvironmentSettings(image_builder_version="2025.06")
        metadata = pb.EnvironmentMetadata(name=request.deployment_name or "main", settings=settings)
        return pb.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    async def AppCreate(self, request: Any, _: Any) -> pb.AppCreateResponse:
        app = self.new("ap")
        return pb.AppCreateResponse(app_id=app, app_page_url=f"https://modal.test/apps/{app}")

    async def AppGetOrCreate(self, request: Any, _: Any) -> pb.AppGetOrCreateResponse:
        return pb.AppGetOrCreateResponse(app_id=self.deployed.setdefault(request.app_name, self.new("ap")))

    async def AppGetByDeploymentName(self, request: Any, _: Any) -> pb.AppGetByDeploymentNameResponse:
        return pb.AppGetByDeploymentNameResponse(app_id=self.deployed.get(request.name, ""))

    async def AppGetLayout(self, request: Any, _: Any) -> pb.AppGetLayoutResponse:
        return pb.AppGetLayoutResponse(app_layout=self.app_layout(request.app_id))

    async def AppPublish(self, request: Any, _: Any) -> pb.AppPublishResponse:
        self.layouts[request.app_id] = request
        if request.app_state == pb.APP_STATE_DEPLOYED:
            self.deployed[request.name] = request.app_id
        return pb.AppPublishResponse(url=f"https://modal.test/apps/{request.app_id}", deployed_at=1.0)

    async def AppStop(self, request: Any, _: Any) -> Empty:
        self.stopped.add(request.app_id)
        self.deployed = {name: app for name, app in self.deployed.items() if app != request.app_id}
        return Empty()

    async def AppClientDisconnect(self, request: Any, _: Any) -> Empty:
        self.stopped.add(request.app_id)
        return Empty()

    def app_layout(self, app: str) -> pb.AppLayout:
        published = self.layouts.get(app, pb.AppPublishRequest())
        functions, classes = dict(published.function_ids), dict(published.class_ids)
        ids = {*functions.values(), *classes.values()}
        ids |= {part.object_id for name in functions.values() for part in self.functions[name].object_dependencies}
        objects = []
        for id_ in sorted(ids):
            thing = pb.Object(object_id=id_)
            if id_.startswith("fu-"):
                thing.function_handle_metadata.CopyFrom(self.handle(id_))
            elif id_.startswith("cs-"):
                thing.class_handle_metadata.SetInParent()
            elif id_.startswith("mo-"):
                thing.mount_handle_metadata.content_checksum_sha256_hex = NO_CHECKSUM
            elif id_.startswith("vo-"):
                thing.volume_metadata.SetInParent()
            objects.append(thing)
        return pb.AppLayout(function_ids=functions, class_ids=classes, objects=objects)

    # -- functions

    def handle(self, id_: str) -> pb.FunctionHandleMetadata:
        function = self.functions[id_]

        def describe(definition: Any, method: str) -> pb.FunctionHandleMetadata:
            return pb.FunctionHandleMetadata(
                function_name=definition.function_name, function_type=definition.function_type,
                web_url=definition.web_url, is_method=bool(method), use_method_name=method,
                function_schema=definition.function_schema,
                supported_input_formats=definition.supported_input_formats,
                supported_output_formats=definition.supported_output_formats,
            )  # fmt: skip

        metadata = describe(function, "")
        metadata.definition_id = f"de-{id_}"
        metadata.class_parameter_info.CopyFrom(function.class_parameter_info)
        metadata.app_id = self.app_of[id_]
        metadata.max_object_size_bytes = MOST_BYTES
        if id_ in self.served:
            metadata._experimental_flash_urls.append(self.served[id_])
        for name, definition in function.method_definitions.items():
            metadata.method_handle_metadata[name].CopyFrom(describe(definition, name))
        return metadata

    async def FunctionPrecreate(self, request: Any, _: Any) -> pb.FunctionPrecreateResponse:
        id_ = request.existing_function_id or self.new("fu")
        self.app_of[id_] = request.app_id
        function = pb.Function(
            function_name=request.function_name, function_type=request.function_type,
            function_schema=request.function_schema, webhook_config=request.webhook_config,
            supported_input_formats=request.supported_input_formats,
            supported_output_formats=request.supported_output_formats,
        )  # fmt: skip
        for name, definition in request.method_definitions.items():
            function.method_definitions[name].CopyFrom(definition)
        self.functions[id_] = function
        return pb.FunctionPrecreateResponse(function_id=id_, handle_metadata=self.handle(id_))

    async def FunctionCreate(self, request: Any, _: Any) -> pb.FunctionCreateResponse:
        id_ = request.existing_function_id or self.new("fu")
        self.app_of[id_] = request.app_id
        data = request.function_data
        if not data.ranked_functions:
            ranked = pb.FunctionData.RankedFunction(rank=0, function=request.function)
            data = pb.FunctionData(ranked_functions=[ranked])
        function = data.ranked_functions[0].function
        if function.is_server or function.webhook_config.type:
            function.web_url = f"https://modal.test/{function.function_name}"
        self.functions[id_] = function
        return pb.FunctionCreateResponse(
            function_id=id_, function=function, function_data=data, handle_metadata=self.handle(id_)
        )

    async def ClassCreate(self, request: Any, _: Any) -> pb.ClassCreateResponse:
        return pb.ClassCreateResponse(class_id=self.new("cs"), handle_metadata=pb.ClassHandleMetadata())

    async def FunctionGet(self, request: Any, _: Any) -> pb.FunctionGetResponse:
        published = self.layouts.get(self.deployed.get(request.app_name, ""))
        if published is None or request.object_tag not in published.function_ids:
            raise missing(f"app {request.app_name!r} with function {request.object_tag!r}")
        id_ = published.function_ids[request.object_tag]
        ranked = pb.FunctionData.RankedFunction(rank=0, function=self.functions[id_])
        data = pb.FunctionData(ranked_functions=[ranked])
        return pb.FunctionGetResponse(function_id=id_, handle_metadata=self.handle(id_), function=data)

    # -- images and the files that are uploaded

    async def ImageGetOrCreate(self, request: Any, _: Any) -> pb.ImageGetOrCreateResponse:
        id_ = self.new("im")
        self.images[id_] = request.image
        result = pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_SUCCESS)
        metadata = pb.ImageMetadata(image_builder_version="2025.06")
        return pb.ImageGetOrCreateResponse(image_id=id_, result=result, metadata=metadata)

    def image_commands(self, id_: str) -> list[str]:
        """Return the lines of an image and of all below it, the lowest first."""
        image = self.images.get(id_, pb.Image())
        below = [line for base in image.base_images for line in self.image_commands(base.image_id)]
        return [*below, *image.dockerfile_commands]

    async def MountBatchedCheckExistence(self, request: Any, _: Any) -> pb.MountBatchedCheckExistenceResponse:
        absent = [name for name in request.sha256_hex_hashes if name not in self.uploads]
        return pb.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=absent)

    async def MountPutFile(self, request: Any, _: Any) -> pb.MountPutFileResponse:
        if request.WhichOneof("data_oneof"):
            self.uploads[request.sha256_hex] = request.data
        return pb.MountPutFileResponse(exists=request.sha256_hex in self.uploads)

    async def MountGetOrCreate(self, request: Any, _: Any) -> pb.MountGetOrCreateResponse:
        id_ = self.named.setdefault(("mo", request.deployment_name), self.new("mo"))  # the client's own are there
        if not request.deployment_name:
            id_ = self.new("mo")
        self.mounts[id_] = list(request.files)
        metadata = pb.MountHandleMetadata(content_checksum_sha256_hex=NO_CHECKSUM)
        return pb.MountGetOrCreateResponse(mount_id=id_, handle_metadata=metadata)

    def home(self, mounts: Iterable[str]) -> Path:
        """Return the folder with the files of mounts, all of which are below /root.

        Containers with the same files share it, and so do not compile them again.
        """
        files = [file for mount in mounts for file in self.mounts.get(mount, [])]
        name = hashlib.sha256("".join(f"{file.filename}{file.sha256_hex}" for file in files).encode()).hexdigest()
        home = self.root / "homes" / name[:16]
        if not home.exists():
            home.mkdir(parents=True)
            for file in files:
                path = home / PurePosixPath(file.filename).relative_to(HOME)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.uploads[file.sha256_hex])
        return home

    # -- secrets and dictionaries

    async def SecretGetOrCreate(self, request: Any, _: Any) -> pb.SecretGetOrCreateResponse:
        id_, new = self._named("st", request)
        if new or request.object_creation_type == pb.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS:
            self.secrets[id_] = dict(request.env_dict)
        absent = [key for key in request.required_keys if key not in self.secrets[id_]]
        if absent:
            raise missing(f"key {absent[0]!r} of secret {request.deployment_name!r}")
        metadata = pb.SecretMetadata(name=request.deployment_name, keys=list(self.secrets[id_]))
        return pb.SecretGetOrCreateResponse(secret_id=id_, metadata=metadata)

    async def DictGetOrCreate(self, request: Any, _: Any) -> pb.DictGetOrCreateResponse:
        id_, _new = self._named("di", request)
        self.dicts.setdefault(id_, {})
        return pb.DictGetOrCreateResponse(dict_id=id_, metadata=pb.DictMetadata(name=request.deployment_name))

    async def DictGet(self, request: Any, _: Any) -> pb.DictGetResponse:
        value = self.dicts[request.dict_id].get(request.key)
        return pb.DictGetResponse(found=value is not None, value=value)

    async def DictUpdate(self, request: Any, _: Any) -> pb.DictUpdateResponse:
        kept = self.dicts[request.dict_id]
        if request.if_not_exists and request.updates[0].key in kept:
            return pb.DictUpdateResponse(created=False)
        kept.update({entry.key: entry.value for entry in request.updates})
        return pb.DictUpdateResponse(created=True)

    async def DictPop(self, request: Any, _: Any) -> pb.DictPopResponse:
        value = self.dicts[request.dict_id].pop(request.key, None)
        return pb.DictPopResponse(found=value is not None, value=value)

    # -- volumes from outside

    def committed(self, volume: str) -> Path:
        """Return the folder of what is committed to a volume."""
        folder = self.root / "committed" / volume
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def volume(self, name: str) -> Path:
        """Return the folder of what is committed to a volume of this name."""
        return self.committed(self.named["vo", name])

    async def VolumeGetOrCreate(self, request: Any, _: Any) -> pb.VolumeGetOrCreateResponse:
        id_, _new = self._named("vo", request)
        metadata = pb.VolumeMetadata(name=request.deployment_name, version=pb.VOLUME_FS_VERSION_V1)
        return pb.VolumeGetOrCreateResponse(volume_id=id_, version=pb.VOLUME_FS_VERSION_V1, metadata=metadata)

    async def VolumePutFiles(self, request: Any, _: Any) -> Empty:
        for file in request.files:
            path = self.committed(request.volume_id) / file.filename.lstrip("/")
            if path.exists() and request.disallow_overwrite_existing_files:
                raise grpclib.GRPCError(grpclib.Status.ALREADY_EXISTS, f"{file.filename} exists")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.uploads[file.sha256_hex])
        return Empty()

    async def VolumeListFiles(self, request: Any, stream: Any) -> None:
        root = self.committed(request.volume_id)
        top = root / request.path.strip("/")
        if not top.exists():
            raise missing(request.path)
        found = [top] if top.is_file() else sorted(top.rglob("*") if request.recursive else top.glob("*"))
        entries = [
            pb.FileEntry(
                path=path.relative_to(root).as_posix(), size=path.stat().st_size, mtime=int(path.stat().st_mtime),
                type=pb.FileEntry.DIRECTORY if path.is_dir() else pb.FileEntry.FILE,
            )
            for path in found
        ]  # fmt: skip
        await stream.send_message(pb.VolumeListFilesResponse(entries=entries))

    async def VolumeGetFile2(self, request: Any, _: Any) -> pb.VolumeGetFile2Response:
        path = self.committed(request.volume_id) / request.path.lstrip("/")
        if not path.is_file():
            raise missing(request.path)
        size = path.stat().st_size
        url = f"{self.files.url}/{quote(path.relative_to(self.root / 'committed').as_posix())}"
        blocks = [f"{url}?{start}" for start in range(0, size, BLOCK)]
        return pb.VolumeGetFile2Response(get_urls=blocks, size=size, start=0, len=size)
