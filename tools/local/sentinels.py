"""A primary of Redis with replicas, and the sentinels that watch them, as local processes."""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from tools.local.servers import HOST, Redis, Server, await_server, free_port, redis_program

SERVICE = "veil-queue"
DOWN_MILLISECONDS = 1000  # without an answer, after which a server counts as down


@dataclass
class Replicated:
    """Servers of Redis of which one is the primary, and their sentinels, with two passwords."""

    servers: list[Redis]
    sentinels: list[Redis]
    password: str
    sentinel_password: str

    @property
    def url(self) -> str:
        """The address of the sentinels, without passwords."""
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in self.sentinels)
        return f"sentinel://{hosts}/0"

    def environment(self) -> dict[str, str]:
        return {
            "VEIL_REDIS_URL": self.url,
            "VEIL_REDIS_SERVICE": SERVICE,
            "VEIL_REDIS_PASSWORD": self.password,
            "VEIL_REDIS_SENTINEL_PASSWORD": self.sentinel_password,
        }

    def primary(self) -> Redis:
        """Return the server that the first sentinel names."""
        with self.sentinels[0].client() as client:
            _, port = client.sentinel_get_master_addr_by_name(SERVICE)
        return next(server for server in self.servers if server.port == port)

    def is_whole(self) -> bool:
        """Return whether all servers replicate the primary, and all sentinels agree on it."""
        try:
            primary = self.primary()
            with primary.client() as client:
                state = client.info("replication")
            if state["role"] != "master" or state["connected_slaves"] != len(self.servers) - 1:
                return False
            if any(
                state[f"slave{number}"]["state"] != "online"
                for number in range(len(self.servers) - 1)
            ):
                return False
            return all(self._is_settled(sentinel, primary.port) for sentinel in self.sentinels)
        except (redis.exceptions.RedisError, KeyError):
            return False

    def stop(self) -> None:
        for each in (*self.sentinels, *self.servers):
            each.server.stop()

    def _is_settled(self, sentinel: Redis, port: int) -> bool:
        with sentinel.client() as client:
            state: dict[str, Any] = client.sentinel_master(SERVICE)
            replicas = client.sentinel_slaves(SERVICE)
        usable = [each for each in replicas if not (each["is_sdown"] or each["is_disconnected"])]
        return (
            state["port"] == port
            and not state["is_sdown"]
            and state["num-other-sentinels"] == len(self.sentinels) - 1
            and len(usable) == len(self.servers) - 1
        )


def start_replicated(folder: Path, replicas: int = 1, sentinels: int = 3) -> Replicated:
    """Start a primary, `replicas` and `sentinels` with their files in `folder`."""
    started = Replicated([], [], secrets.token_urlsafe(24), secrets.token_urlsafe(24))
    try:
        for number in range(1 + replicas):
            config = _server_config(started)
            server = _start(folder / f"redis-{number}", config, started.password)
            started.servers.append(server)
        for number in range(sentinels):
            config = _sentinel_config(started, quorum=sentinels // 2 + 1)
            name = folder / f"sentinel-{number}"
            started.sentinels.append(_start(name, config, started.sentinel_password, "--sentinel"))
    except BaseException:
        started.stop()
        raise
    return started


def _server_config(started: Replicated) -> str:
    config = (
        f"requirepass {started.password}\nmasterauth {started.password}\n"
        'appendonly yes\nmaxmemory-policy noeviction\nsave ""\nrepl-diskless-sync-delay 0\n'
    )
    if started.servers:
        config += f"replicaof {HOST} {started.servers[0].port}\n"
    return config


def _sentinel_config(started: Replicated, quorum: int) -> str:
    return (
        f"requirepass {started.sentinel_password}\n"
        f"sentinel sentinel-pass {started.sentinel_password}\n"
        f"sentinel monitor {SERVICE} {HOST} {started.servers[0].port} {quorum}\n"
        f"sentinel auth-pass {SERVICE} {started.password}\n"
        f"sentinel down-after-milliseconds {SERVICE} {DOWN_MILLISECONDS}\n"
        f"sentinel failover-timeout {SERVICE} 5000\n"
    )


def _start(folder: Path, config: str, password: str, *options: str) -> Redis:
    """Start a server, which writes what it learns about the others into its own configuration."""
    folder.mkdir(parents=True)
    port = free_port()
    path = folder / "redis.conf"
    path.touch(mode=0o600)
    path.write_text(f'bind {HOST}\nport {port}\ndir "{folder}"\n{config}')
    command = [redis_program(), str(path), *options]
    started = Redis(Server(folder.name, command, folder / "redis.log"), port, password)
    await_server(started.server, started.client().ping, (redis.exceptions.RedisError,))
    return started
