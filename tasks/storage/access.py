"""The clients of boto3 for sources and for destinations, with their own credentials.

An address below a destination of VEIL_ROUTES is reached with the credentials for outputs, any other
address with those for sources. Routes keep the two apart.
"""

import base64
import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.config
import botocore.exceptions as vendor
import botocore.session
import structlog

from .. import tls_errors
from ..addresses import ObjectUri, PrefixUri
from ..errors import SettingsInvalid
from ..routes import Routes
from ..settings import (
    CONFIG_FILE,
    NO_REGION_OF_AMAZON,
    PREFIX,
    S3_ATTEMPTS,
    Settings,
    is_region_of_amazon,
)
from .access_settings import AccessSettings
from .aws_errors import code, status
from .credentials import session_of

DEFAULT_REGION = "us-east-1"  # if nothing is configured; S3 then names the region of each bucket
AMAZON = ("amazonaws.com", "amazonaws.com.cn", "api.aws")  # the ends of the hosts of Amazon S3

Place = ObjectUri | PrefixUri

log = structlog.get_logger("veil")


@dataclass
class Access:
    """A client of boto3 for S3 with the arguments that all of its calls have.

    `without_checksums` makes a client that sends no checksum headers, for stores that refuse them.
    It is None if the client must stay as it is.
    """

    client: Any
    arguments: Mapping[str, str] = field(default_factory=dict)
    without_checksums: Callable[[], Any] | None = None
    _sends_md5: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def call(self, operation: str, **arguments: Any) -> Any:
        """Return the answer of S3. Raises the errors of boto3."""
        return getattr(self.client, operation)(**self.arguments, **arguments)

    def put(self, content: bytes, **arguments: Any) -> None:
        """Write an object, with a checksum that the store verifies.

        boto3 sends a header that older stores refuse in different ways: R2 with 501, B2 with 400,
        GCS with 403, because it leaves the header out of the signature. The first refused call is
        therefore repeated with Content-MD5 in place of that header. If it succeeds, later calls are
        made in the same way.
        """
        is_chosen = "ChecksumAlgorithm" in arguments
        if self._sends_md5 and not is_chosen:
            self.call("put_object", Body=content, ContentMD5=_md5(content), **arguments)
            return
        try:
            self.call("put_object", Body=content, **arguments)
        except vendor.ClientError as error:
            other = None if is_chosen else self.without_checksums
            if other is None or not _may_refuse_checksums(error):
                raise
            self._put_with_md5(other(), error, content, **arguments)
        else:
            self.without_checksums = None  # The store knows the header.

    def _put_with_md5(
        self, client: Any, refusal: vendor.ClientError, content: bytes, **arguments: Any
    ) -> None:
        """Repeat a refused write with `client`, and keep it if the store accepts that."""
        other = Access(client, self.arguments)
        try:
            other.call("put_object", Body=content, ContentMD5=_md5(content), **arguments)
        except vendor.ClientError:
            raise refusal from None
        with self._lock:
            is_known, self._sends_md5 = self._sends_md5, True
            self.client = client
        if is_known:
            return
        log.warning(
            "store refuses checksum headers",
            answer=f"{status(refusal)} {code(refusal)}",
            effect="uploads have the header Content-MD5 in their place",
        )


class Accesses:
    """The ways to reach sources and destinations."""

    def __init__(self, sources: Access, outputs: Access, routes: Routes | None = None) -> None:
        self.sources = sources
        self._outputs = outputs
        self._routes = routes

    @classmethod
    def connect(cls, settings: Settings, connections: int) -> "Accesses":
        """Return the ways for `settings`, each with a pool of `connections`.

        Both have one client if they have the same credentials. Raises SettingsInvalid if the
        endpoint, the region, a profile or boto3's own configuration can't be used.
        """
        _check_profiles(settings)
        try:
            sources = _access(settings, connections, settings.source_access())
            if settings.output_access() == settings.source_access():
                return cls(sources, sources)
            outputs = _access(settings, connections, settings.output_access())
        except (vendor.BotoCoreError, ValueError) as error:
            raise SettingsInvalid(f"no S3 client can be made: {error}") from None
        return cls(sources, outputs, settings.parsed_routes())

    def of(self, place: Place) -> Access:
        """Return the way to reach `place`."""
        if self._routes is None:
            return self.sources
        key = place.key if isinstance(place, ObjectUri) else place.prefix
        for route in self._routes:
            destination = route.destination
            if place.bucket == destination.bucket and key.startswith(destination.prefix):
                return self._outputs
        return self.sources


def region_of(session: boto3.session.Session, settings: Settings) -> str:
    """Return the region of the setting, else that of the environment or of the profile.

    boto3 itself does not read AWS_REGION, which containers on Amazon's services have, and which the
    command `aws` prefers to AWS_DEFAULT_REGION.
    """
    configured = settings.s3_region or os.environ.get("AWS_REGION") or session.region_name
    return configured or DEFAULT_REGION


def _access(settings: Settings, connections: int, way: AccessSettings) -> Access:
    """Return one way. Raises the errors of botocore."""
    style = settings.s3_addressing
    config = botocore.config.Config(
        connect_timeout=settings.s3_connect_seconds,
        read_timeout=settings.s3_read_seconds,
        max_pool_connections=connections,
        retries={"mode": "standard", "total_max_attempts": S3_ATTEMPTS},
        tcp_keepalive=True,
        # Without a style, boto3 chooses the one that the setting `auto` describes.
        s3=None if style == "auto" else {"addressing_style": style},
    )
    session = session_of(way, lambda base: region_of(base, settings))

    def connect(**more: str) -> Any:
        return session.client(
            "s3",
            endpoint_url=settings.s3_endpoint,
            region_name=region_of(session, settings),
            config=config.merge(botocore.config.Config(**more)),
        )

    client = connect()
    _check_authorities(client, way.profile)
    if _is_amazon(client) and not is_region_of_amazon(client.meta.region_name):
        raise SettingsInvalid(NO_REGION_OF_AMAZON.format(client.meta.region_name))
    if _is_amazon(client) or client.meta.config.request_checksum_calculation != "when_supported":
        return Access(client, way.arguments())
    without_checksums = partial(connect, request_checksum_calculation="when_required")
    return Access(client, way.arguments(), without_checksums)


def _check_profiles(settings: Settings) -> None:
    """Raise SettingsInvalid for a profile of the settings that boto3 does not know."""
    known = botocore.session.Session().available_profiles
    problems = [
        f"{PREFIX}{name.upper()}: boto3 knows no profile {profile!r:.60}: add it to {CONFIG_FILE}"
        for name in ("s3_source_profile", "s3_output_profile")
        if (profile := getattr(settings, name)) and profile not in known
    ]
    if problems:
        raise SettingsInvalid("; ".join(problems))


def _check_authorities(client: Any, profile: str | None) -> None:
    """Raise SettingsInvalid if the store's certificate would be compared with an unusable file."""
    path = botocore.session.Session(profile=profile).get_config_variable("ca_bundle")
    if not path or urlsplit(client.meta.endpoint_url).scheme != "https":
        return
    if problem := tls_errors.authorities_problem(path):
        raise SettingsInvalid(f"AWS_CA_BUNDLE: {problem}")


def _is_amazon(client: Any) -> bool:
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    return host.endswith(AMAZON)


def _may_refuse_checksums(error: vendor.ClientError) -> bool:
    """Return whether a store may have refused a write because of its checksum headers."""
    return status(error) in (400, 501) or code(error) == "SignatureDoesNotMatch"


def _md5(content: bytes) -> str:
    digest = hashlib.md5(content, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()
