"""Health on a port of its own, reflection on demand, and new work taken while a drain begins."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from cmamil_sdk.client import AsyncClient, Client
from cmamil_sdk.errors import ConfigInvalid, ServerUnreachable
from cmamil_sdk.serving import server as server_module
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.health import LIVENESS
from cmamil_sdk.serving.server import Server, _pause
from cmamil_sdk.serving.service import SERVICE_NAMES

from .certificates import issue
from .listening import listening, listening_server
from .waiting import wait_until

INFO = "/cmamil.v1.ServerService/GetServerInfo"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def health_of(channel: grpc.Channel, service: str) -> str:
    request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    data = channel.unary_unary("/grpc.health.v1.Health/Check")(request, timeout=10)
    status = health_pb2.HealthCheckResponse.FromString(data).status
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))


def test_a_client_connects_anew_when_its_connection_is_old(config: ServerConfig) -> None:
    with listening(config.model_copy(update={"connection_age_s": 0.3})) as address:
        seen: list[grpc.ChannelConnectivity] = []
        with grpc.insecure_channel(address) as channel:
            channel.subscribe(seen.append)
            assert health_of(channel, LIVENESS) == "SERVING"
            wait_until(lambda: seen[-1:] == [grpc.ChannelConnectivity.IDLE] and len(seen) > 1)
            assert health_of(channel, LIVENESS) == "SERVING"


def test_probes_ask_health_without_certificate_and_nothing_else(
    config: ServerConfig, tmp_path: Path
) -> None:
    authority = issue(tmp_path, "authority", authority=True)
    server = issue(tmp_path, "server", authority)
    settings = config.model_copy(
        update={
            "health_port": 0,
            "tls_certificate": server.certificate,
            "tls_key": server.key,
            "tls_client_ca": authority.certificate,
        }
    )
    with listening_server(settings) as running:
        with grpc.insecure_channel(f"127.0.0.1:{running.health_port}") as channel:
            assert health_of(channel, "") == health_of(channel, SERVICE_NAMES[0]) == "NOT_SERVING"
            assert health_of(channel, LIVENESS) == "SERVING"
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(INFO)(b"", timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with Client(f"127.0.0.1:{running.port}") as client, pytest.raises(ServerUnreachable):
            client.health()
        taken = settings.model_copy(update={"health_port": running.health_port})
        with pytest.raises(ConfigInvalid, match="cannot listen"), listening(taken):
            pass


def listed(address: str) -> set[str]:
    """The services that reflection names."""
    with grpc.insecure_channel(address) as channel:
        method: Any = channel.stream_stream(
            REFLECTION,
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(
                file_containing_symbol="cmamil.v1.PredictSlideRequest"
            ),
        ]
        services, file = method(iter(asked), timeout=10)
    assert b"cmamil/v1/slide.proto" in file.file_descriptor_response.file_descriptor_proto[0]
    return {service.name for service in services.list_services_response.service}


def test_reflection_is_off_unless_asked_for(config: ServerConfig) -> None:
    with listening(config) as address:
        with pytest.raises(grpc.RpcError) as caught:
            listed(address)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with listening(config.model_copy(update={"reflection": True})) as address:
        assert set(SERVICE_NAMES) | {"grpc.health.v1.Health"} < listed(address)


def test_new_work_is_taken_for_a_moment_after_health_has_fallen(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        go_on = asyncio.Event()

        async def pause(seconds: float, _hurry: asyncio.Event | None) -> None:
            assert seconds == 3.0
            await go_on.wait()

        monkeypatch.setattr(server_module, "_pause", pause)
        server = Server(config.model_copy(update={"workers": 1, "drain_delay_s": 3.0}))
        await server.start()
        async with AsyncClient(f"127.0.0.1:{server.port}", timeout_s=60.0) as client:
            stopping = asyncio.create_task(server.stop())
            while await client.health() == "SERVING":
                await asyncio.sleep(0.01)
            assert (await client.predict("a.svs")).label
            go_on.set()
            await stopping

    asyncio.run(scenario())


def test_a_hurried_stop_does_not_wait() -> None:
    async def scenario() -> None:
        hurry = asyncio.Event()
        pause = asyncio.create_task(_pause(60.0, hurry))
        await asyncio.sleep(0.01)
        assert not pause.done()
        hurry.set()
        await asyncio.wait_for(pause, 1.0)

    asyncio.run(scenario())
