"""Settings shared by producers and workers, read from ``VEIL_`` environment variables."""

import difflib
import inspect
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit, urlunsplit

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from redis import SSLConnection

from . import secret_files, tls_errors
from .alternatives import alternatives
from .errors import SettingsInvalid, VeilError
from .notifications import address as notify_address
from .redis import address as redis_address
from .routes import Routes
from .routes_file import Problem, read_routes
from .signatures import Key
from .storage.access_settings import AccessSettings
from .wrong_values import in_words, of_form

PREFIX = "VEIL_"

# Other workers take over the pictures of a dead worker within a minute. That minute consists of the
# lease, the interval between searches for expired leases, and a wait if Redis was away.
MAX_LEASE_SECONDS = 45

S3_ATTEMPTS = 3  # of a call to S3, with the retries of botocore
REGION = re.compile(r"[A-Za-z0-9_-]{1,64}")
AMAZON_REGION = re.compile(r"[a-z]{2,4}(-[a-z]+){1,3}-\d{1,2}")
NO_REGION_OF_AMAZON = (
    "{} is no region of Amazon S3, such as eu-central-1; another store needs VEIL_S3_ENDPOINT"
)
CONFIG_FILE = "~/.aws/config"  # of boto3

MIN_SECRET_CHARACTERS = 32
WEBHOOK_TOKEN = re.compile(rf"[!-~]{{{MIN_SECRET_CHARACTERS},}}")
ACCOUNT = re.compile(r"\d{12}")
ROLE = re.compile(r"arn:[\w-]+:iam::[^:]*:role/\S+")
REDIS_PORT = 6379  # the port of an address that names none
DEFAULT_SERVICE = "mymaster"  # of the sentinels, in their own examples too

# The part of a Redis address after the scheme: host and port, database, TLS options.
# An @ in other options is that of a password whose special characters are not quoted.
REDIS_LOCATION = re.compile(r"[^/?#]*(/\d*)?(\?ssl_[^#]*|\?[^#@]*)?")
TLS_OPTIONS = [name for name in inspect.signature(SSLConnection).parameters if name[:4] == "ssl_"]
TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
# The values of the option ssl_cert_reqs that Celery accepts.
CERTIFICATE_CHECKS = (
    *("required", "optional", "none"),
    *("CERT_REQUIRED", "CERT_OPTIONAL", "CERT_NONE"),
)


ServiceName = Annotated[
    str, of_form(r"[\x21-\x7e]{1,200}", "a name of up to 200 ASCII characters without spaces")
]
KeyPrefix = Annotated[
    str, of_form(r"[A-Za-z0-9_.:-]{0,64}", "up to 64 letters, digits and any of _.:-")
]
HeifSuffix = Annotated[
    str,
    of_form(r"(\.[A-Za-z0-9_.-]{0,30}[A-Za-z0-9_])?", "a suffix such as .jpg, or empty"),
]


def split_commas(value: Any) -> Any:
    """Return the parts of a comma-separated text, stripped and without empty ones.

    Other values are returned as they are, because pydantic validates them afterwards.
    """
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_commas)]
"""The type of a setting with several words, comma-separated."""


class Settings(BaseSettings):
    """The queue, the object store, and the routes.

    S3 credentials are not settings: boto3 finds them in AWS_ACCESS_KEY_ID and
    AWS_SECRET_ACCESS_KEY, in a profile, or in the machine's role. boto3 also finds the endpoint and
    the region where these settings are empty.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )
    _parsed_routes: Routes = PrivateAttr()

    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="Redis that holds the queues and the results: `redis://HOST:PORT/DATABASE`, or "
        "`rediss://` with TLS; or the sentinels that know it, `sentinel://HOST:PORT,HOST:PORT/"
        "DATABASE`, or `sentinels://` with TLS. docs/redis.md has examples, and "
        "docs/permissions.md users and certificates.",
    )
    redis_password: SecretStr | None = Field(
        None,
        description="Password for `VEIL_REDIS_URL`, so that it need not be part of the address.",
    )
    redis_service: ServiceName | None = Field(
        None,
        description="Name under which the sentinels in `VEIL_REDIS_URL` watch Redis. Empty for "
        "`mymaster`.",
    )
    redis_sentinel_user: str | None = Field(
        None, description="User of the sentinels, if theirs have users."
    )
    redis_sentinel_password: SecretStr | None = Field(
        None,
        description="Password of the sentinels. That of Redis itself is `VEIL_REDIS_PASSWORD`.",
    )
    redis_replicas: int = Field(
        0,
        ge=0,
        le=10,
        description="Number of replicas of Redis that must have a message before it counts as "
        "enqueued. With 0, a failover may lose messages that had not reached a replica.",
    )
    redis_prefix: KeyPrefix = Field(
        "",
        description="Text before the name of every key and channel in Redis, such as `team-a:`, so "
        "that several installations share a Redis: up to 64 letters, digits and `_.:-`. All "
        "workers and commands of an installation need the same.",
    )
    result_hours: float = Field(
        24,
        gt=0,
        le=8760,
        description="Hours for which Redis keeps the report of a picture.",
    )
    lease_seconds: float = Field(
        20,
        ge=2,
        le=MAX_LEASE_SECONDS,
        description="Seconds after which another worker takes the picture of a worker that has "
        "died. Running workers renew the leases of all pictures that they hold.",
    )
    grace_seconds: float = Field(
        25,
        ge=0,
        le=3600,
        description="Seconds for which a stopping worker continues with its pictures. It then "
        "returns the unfinished ones to the queue.",
    )
    s3_endpoint: str | None = Field(
        None,
        description="Address of an S3-compatible store. Empty for the one that boto3 is configured "
        "with (`AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, a profile), else Amazon S3.",
    )
    s3_region: str | None = Field(
        None,
        description="Region of the buckets, such as `eu-central-1`. Empty for `AWS_REGION`, "
        "`AWS_DEFAULT_REGION` or the region of the profile, in this order, else us-east-1.",
    )
    s3_addressing: Literal["auto", "path", "virtual"] = Field(
        "auto",
        description="Place of the bucket's name in the address of an object: after the host "
        "(`path`) or before it (`virtual`). `auto` takes `addressing_style` from the profile, else "
        "`virtual` for Amazon S3 and `path` for other stores.",
    )
    s3_connect_seconds: float = Field(
        5, gt=0, le=60, description="Seconds allowed for opening a connection to S3."
    )
    s3_read_seconds: float = Field(
        20, gt=0, le=120, description="Seconds allowed for S3 to send the next bytes."
    )

    s3_source_profile: str | None = Field(
        None,
        description="Profile of boto3 with the credentials for sources. Empty for `AWS_PROFILE`, "
        "and for the places where boto3 finds credentials.",
    )
    s3_output_profile: str | None = Field(
        None, description="Profile of boto3 with the credentials for outputs and receipts."
    )
    s3_source_role: str | None = Field(
        None,
        description="ARN of a role that is assumed for sources, with the credentials of the "
        "profile. Empty to use these credentials themselves.",
    )
    s3_output_role: str | None = Field(
        None, description="ARN of a role that is assumed for outputs and receipts."
    )
    s3_external_id: str | None = Field(
        None, description="External id with which the roles are assumed."
    )
    s3_source_owner: str | None = Field(
        None,
        description="Account, of 12 digits, to which the buckets of sources, inventories and "
        "models must belong. S3 refuses every call if they belong to another one.",
    )
    s3_output_owner: str | None = Field(
        None, description="Account to which the buckets of outputs must belong."
    )
    s3_requester_pays: Literal["none", "sources", "outputs", "both"] = Field(
        "none",
        description="Buckets for whose requests this account pays instead of their owner "
        "(requester pays).",
    )

    routes_file: str | None = Field(
        None,
        description="TOML file with routes that have names, and settings of their own, in place of "
        "`VEIL_ROUTES`: docs/routes.md. Workers and commands need the same file.",
    )
    routes: Words = Field(
        ("s3://raw=s3://clean",),
        description="Sources that may be read and destinations of their outputs, "
        "`s3://SOURCE=s3://DESTINATION`, comma-separated. A message that names any other place is "
        "refused.",
    )
    heif_suffix: HeifSuffix = Field(
        "",
        description="Suffix of the outputs of sources with `.heic`, `.heif` or `.hif`, such as "
        "`.jpg`. Empty to keep the source's key. Workers and commands need the same value.",
    )
    webhook_token: SecretStr | None = Field(
        None,
        description="Token that senders of events to `veil watch --http` must show, as "
        "`Authorization: Bearer TOKEN`: 32 characters or more, ASCII without spaces "
        "(`openssl rand -hex 32`).",
    )

    notify: str | None = Field(
        None,
        description="Target of a notification for each outcome of a picture: the address of a "
        "webhook, `https://HOST/PATH`, or the ARN of an SQS queue or an SNS topic. Empty for none. "
        "docs/notifications.md has the form of the events.",
    )
    notify_key: SecretStr | None = Field(
        None,
        description="Secret with which notifications to a webhook are signed (HMAC-SHA-256), of 32 "
        "characters or more. Of several, comma-separated, each signs, so that receivers can change "
        "theirs.",
    )
    notify_hours: float = Field(
        72,
        gt=0,
        le=720,
        description="Hours for which a notification is tried again that its target does not "
        "accept. It is then given up, with a line in the log.",
    )

    receipt_key: SecretStr | None = Field(
        None,
        description="Key with which receipts are signed and outputs are marked (HMAC-SHA-256), of "
        "32 characters or more. Of several keys, comma-separated, the first signs and all are "
        "accepted. Commands need the same keys as the workers.",
    )

    names_key: SecretStr | None = Field(
        None,
        description='Secret of the names of outputs on routes with `output_names = "hash"`, of 32 '
        "characters or more: docs/routes.md. Workers, triggers and commands need the same; with "
        "another one, all of these outputs get new names.",
    )

    metrics: str | None = Field(
        None,
        description="Address at which a worker or `veil watch` serves its Prometheus metrics, "
        "`HOST:PORT`; empty to serve none. The page has no password, and each process needs an "
        "address of its own.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any, info: ValidationInfo) -> Any:
        """Return None for an empty text, if that is the default of the setting."""
        default = cls.model_fields[str(info.field_name)].default
        return None if value == "" and default is None else value

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: SecretStr) -> SecretStr:
        try:
            url, _ = redis_address.split_sentinels(value.get_secret_value())
        except ValueError:  # Its text quotes passwords.
            url = ""
        location = url.partition("://")[2]
        if not _has_server(url, ("redis", "rediss")) or not REDIS_LOCATION.fullmatch(location):
            raise ValueError(
                "must look like redis://HOST:PORT/0, with the number of a database, or like "
                "sentinel://HOST:PORT,HOST:PORT/0; "
                "quote special characters in a password, as %23 for #"
            )
        _check_options(urlsplit(url))
        return value

    @model_validator(mode="after")
    def _check_redis_password(self) -> Self:
        server, _ = redis_address.split_sentinels(self.redis_url.get_secret_value())
        within = unquote(urlsplit(server).password or "")
        beside = self.redis_password.get_secret_value() if self.redis_password else ""
        if within and beside and within != beside:
            raise ValueError(
                f"{PREFIX}REDIS_URL has another password than {PREFIX}REDIS_PASSWORD: "
                "keep one of them"
            )
        return self

    @model_validator(mode="after")
    def _check_sentinels(self) -> Self:
        if not self.redis_sentinels():
            names = ("redis_service", "redis_sentinel_user", "redis_sentinel_password")
            for name in names:
                if (value := getattr(self, name)) and value != SecretStr(""):
                    raise ValueError(
                        f"{PREFIX}{name.upper()} needs sentinels in VEIL_REDIS_URL: "
                        "sentinel://HOST:PORT,HOST:PORT/0"
                    )
        return self

    @field_validator("s3_endpoint")
    @classmethod
    def _endpoint_scheme(cls, value: str | None) -> str | None:
        if not value:
            return None
        is_server = _has_server(value, ("http", "https")) and "@" not in urlsplit(value).netloc
        if not is_server or "?" in value or "#" in value:
            raise ValueError("must look like http://HOST:PORT, without a user, a password, ? or #")
        return value

    @field_validator("s3_region")
    @classmethod
    def _check_region(cls, value: str | None, info: ValidationInfo) -> str | None:
        if not value:
            return None
        if not REGION.fullmatch(value):
            raise ValueError(f"{value!r:.40} is no name of a region, such as eu-central-1")
        is_amazon = not info.data.get("s3_endpoint") and not _may_name_another_store(os.environ)
        if is_amazon and not is_region_of_amazon(value):
            raise ValueError(NO_REGION_OF_AMAZON.format(value))
        return value

    @field_validator("s3_source_role", "s3_output_role")
    @classmethod
    def _check_role(cls, value: str | None) -> str | None:
        if value and not ROLE.fullmatch(value):
            raise ValueError("must be an ARN like arn:aws:iam::123456789012:role/veil")
        return value or None

    @field_validator("s3_source_owner", "s3_output_owner")
    @classmethod
    def _check_owner(cls, value: str | None) -> str | None:
        if value and not ACCOUNT.fullmatch(value):
            raise ValueError("must be an account of 12 digits")
        return value or None

    @model_validator(mode="after")
    def _check_external_id(self) -> Self:
        if self.s3_external_id and not (self.s3_source_role or self.s3_output_role):
            raise ValueError("VEIL_S3_EXTERNAL_ID needs VEIL_S3_SOURCE_ROLE or VEIL_S3_OUTPUT_ROLE")
        return self

    @field_validator("receipt_key")
    @classmethod
    def _check_receipt_key(cls, value: SecretStr | None) -> SecretStr | None:
        for text in split_commas(value.get_secret_value()) if value else ():
            Key.parse(text)
        return value

    @field_validator("names_key")
    @classmethod
    def _check_names_key(cls, value: SecretStr | None) -> SecretStr | None:
        if not value or not (text := value.get_secret_value()):
            return None
        _check_length(text)
        if "," in text:
            raise ValueError("is one secret, without commas: another one gives other names")
        return value

    @field_validator("webhook_token")
    @classmethod
    def _check_webhook_token(cls, value: SecretStr | None) -> SecretStr | None:
        if not value or not (text := value.get_secret_value()):
            return None
        if not WEBHOOK_TOKEN.fullmatch(text):
            raise ValueError(
                f"needs {MIN_SECRET_CHARACTERS} characters or more, ASCII without spaces: "
                "make one with `openssl rand -hex 32`"
            )
        return value

    @field_validator("notify_key")
    @classmethod
    def _check_notify_key(cls, value: SecretStr | None) -> SecretStr | None:
        for text in split_commas(value.get_secret_value()) if value else ():
            _check_length(text)
        return value

    @model_validator(mode="after")
    def _check_notify(self) -> Self:
        if self.notify:
            try:
                notify_address.check(self.notify, self.notify_secrets())
            except ValueError as error:
                raise ValueError(f"{PREFIX}NOTIFY: {error}") from None
        return self

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, value: str | None) -> str | None:
        if not value:
            return None
        split_address(value)
        return value

    @field_validator("routes_file", mode="before")
    @classmethod
    def _text_of_file(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("routes")
    @classmethod
    def _check_routes(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not value and info.data.get("routes_file"):
            return value
        if not value:
            raise ValueError("give one or more routes like s3://raw=s3://clean")
        try:
            Routes.parse(*value)
        except VeilError as error:
            raise ValueError(str(error)) from None
        return value

    def _check_together(self) -> None:
        """Raise ValueError for settings that contradict each other.

        Subclasses check theirs here. A validator of a subclass would run after the routes file was
        read, and each of its routes would be blamed for an error of the environment.
        """

    @model_validator(mode="after")
    def _read_routes(self) -> Self:
        # Settings of a route are checked beside those of the environment, which are right then.
        self._check_together()
        if self.routes_file is None:
            self._parsed_routes = Routes.parse(*self.routes).with_heif_suffix(self.heif_suffix)
            return self
        if self.routes and "routes" in self.model_fields_set:
            raise ValueError(f"{PREFIX}ROUTES and {PREFIX}ROUTES_FILE are set: keep one of them")
        try:
            routes = read_routes(Path(self.routes_file), self.route_problems, self._hash_key())
        except ValueError as error:
            raise ValueError(f"{PREFIX}ROUTES_FILE: {error}") from None
        self._parsed_routes = routes.with_heif_suffix(self.heif_suffix)
        return self

    def route_problems(self, _settings: Mapping[str, Any]) -> list[Problem]:
        """Return what is wrong with the settings of a route; here only their names are known."""
        return []

    @classmethod
    def load(cls, **values: Any) -> Self:
        """Return the settings from the environment; `values` take precedence.

        A secret may be in a file: see tasks.secret_files. Raises SettingsInvalid, with a message of
        one line that names every invalid value.
        """
        variables = [variable for name, variable in cls.secrets().items() if name not in values]
        found, problems = secret_files.read(os.environ, variables)
        for name, variable in cls.secrets().items():
            if variable in found:
                values[name] = found[variable]
        try:
            settings = cls(**values)
        except ValidationError as error:
            problems += _problems(error, cls)
        if problems:
            raise SettingsInvalid("; ".join(problems))
        return settings

    @classmethod
    def secrets(cls) -> dict[str, str]:
        """Return the variable of each setting that is a secret, by the name of its field."""
        return {
            name: PREFIX + name.upper()
            for name, field in cls.model_fields.items()
            if SecretStr in (field.annotation, *get_args(field.annotation))
        }

    @classmethod
    def refuse_misspelt(cls, environment: Mapping[str, str]) -> None:
        """Raise SettingsInvalid for ``VEIL_`` variables that are no settings.

        The message also names the settings with invalid values, so that one try shows every error.
        """
        try:
            refuse_unknown(environment, cls)
        except SettingsInvalid as misspelt:
            message = str(misspelt)
            try:
                cls.load()
            except SettingsInvalid as invalid:
                message = f"{message}; {invalid}"
            raise SettingsInvalid(message) from None

    def parsed_routes(self) -> Routes:
        return self._parsed_routes

    def has_routes(self) -> bool:
        """Return whether the routes are set, so that they are not the default one."""
        return self.routes_file is not None or "routes" in self.model_fields_set

    def source_access(self) -> AccessSettings:
        """Return the settings of the way to sources."""
        return AccessSettings(
            profile=self.s3_source_profile,
            role=self.s3_source_role,
            external_id=self.s3_external_id if self.s3_source_role else None,
            owner=self.s3_source_owner,
            requester_pays=self.s3_requester_pays in ("sources", "both"),
        )

    def output_access(self) -> AccessSettings:
        """Return the settings of the way to outputs and receipts."""
        return AccessSettings(
            profile=self.s3_output_profile,
            role=self.s3_output_role,
            external_id=self.s3_external_id if self.s3_output_role else None,
            owner=self.s3_output_owner,
            requester_pays=self.s3_requester_pays in ("outputs", "both"),
        )

    def redis_server(self) -> str:
        """Return ``HOST:PORT`` of Redis, for messages: no user, password or database.

        For sentinels, the text has all of them, comma-separated.
        """
        server, sentinels = redis_address.split_sentinels(self.redis_url.get_secret_value())
        return redis_address.host_names(server, sentinels, REDIS_PORT)

    def redis_sentinels(self) -> tuple[redis_address.Host, ...]:
        """Return the hosts and ports of the sentinels; none if Redis has a fixed address."""
        return redis_address.split_sentinels(self.redis_url.get_secret_value())[1]

    def sentinel_url(self) -> str | None:
        """Return the sentinels in the form of Celery's own transport, or None: never log it."""
        if sentinels := self.redis_sentinels():
            return redis_address.join_sentinels(self.broker_url(), sentinels)
        return None

    def transport_options(self) -> dict[str, Any]:
        """Return the options of Celery's transport for the sentinels and the prefix.

        They have the password of the sentinels: never log them.
        """
        options: dict[str, Any] = {}
        if self.redis_prefix:
            options["global_keyprefix"] = self.redis_prefix
        if self.redis_replicas:
            options["replicas"] = self.redis_replicas
        if sentinels := self.redis_sentinels():
            access: dict[str, Any] = dict(self.tls_options())
            if access:
                access["ssl"] = True
            if self.redis_sentinel_user:
                access["username"] = self.redis_sentinel_user
            if self.redis_sentinel_password:
                access["password"] = self.redis_sentinel_password.get_secret_value()
            options["sentinels"] = [list(host) for host in sentinels]
            options["master_name"] = self.redis_service or DEFAULT_SERVICE
            options["sentinel_kwargs"] = access
        return options

    def tls_options(self) -> dict[str, Any]:
        """Return the TLS options for connections to sentinels and to the Redis that they name.

        There are none for a Redis with a fixed address: Celery reads those in the address itself.
        """
        server, sentinels = redis_address.split_sentinels(self.redis_url.get_secret_value())
        return redis_address.tls_options(server) if sentinels else {}

    def notify_secrets(self) -> list[str]:
        """Return the secrets that sign notifications."""
        key = self.notify_key.get_secret_value() if self.notify_key else ""
        return list(split_commas(key))

    def _hash_key(self) -> Key | None:
        return Key.parse(self.names_key.get_secret_value()) if self.names_key else None

    def receipt_keys(self) -> tuple[Key, ...]:
        """Return the keys for receipts; the first one signs."""
        texts = split_commas(self.receipt_key.get_secret_value()) if self.receipt_key else ()
        return tuple(Key.parse(text) for text in texts)

    def broker_url(self) -> str:
        """Return the Redis address with its password, for Celery only: never log it.

        With sentinels, the host is that of one of them. The connections of `redis.primary` ignore
        it.
        """
        server, _ = redis_address.split_sentinels(self.redis_url.get_secret_value())
        parts = urlsplit(server)
        if parts.scheme == "rediss" and "ssl_cert_reqs" not in parts.query:
            # Celery has no default. TLS protects nothing if certificates are not checked.
            options = (parts.query, "ssl_cert_reqs=CERT_REQUIRED")
            parts = parts._replace(query="&".join(filter(None, options)))
        if self.redis_password is None or not self.redis_password.get_secret_value():
            return urlunsplit(parts)
        user = quote(unquote(parts.username or ""), safe="")
        host_and_port = parts.netloc.rpartition("@")[2]
        password = quote(self.redis_password.get_secret_value(), safe="")
        return urlunsplit(parts._replace(netloc=f"{user}:{password}@{host_and_port}"))


def is_region_of_amazon(region: str) -> bool:
    """Return whether `region` has the form of Amazon's regions."""
    return AMAZON_REGION.fullmatch(region) is not None


def _may_name_another_store(environment: Mapping[str, str]) -> bool:
    """Return whether the configuration of boto3 may name another store than Amazon S3."""
    file = Path(environment.get("AWS_CONFIG_FILE") or CONFIG_FILE)
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_PROFILE")
    if any(environment.get(name) for name in names):
        return True
    try:
        return file.expanduser().is_file()
    except (OSError, RuntimeError):  # A home that may not be read, or none: boto3 reads no file.
        return False


def split_address(text: str) -> tuple[str, int]:
    """Return the host and the port in ``HOST:PORT``. Raises ValueError for any other text."""
    try:
        parts = urlsplit(f"//{text}")
        if parts.hostname and parts.port and parts.username is None and parts.netloc == text:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise ValueError("must be HOST:PORT, like 127.0.0.1:9100")


def _check_length(secret: str) -> None:
    """Raise ValueError if `secret` is too short to be one."""
    if len(secret) < MIN_SECRET_CHARACTERS:
        raise ValueError(
            f"needs {MIN_SECRET_CHARACTERS} characters or more: `openssl rand -hex 32` makes them"
        )


def _problems(error: ValidationError, settings: type[BaseSettings]) -> list[str]:
    """Return one text for each wrong setting: its variable, and the first error in its value.

    If the setting takes values of several types, the text says which.
    """
    problems: dict[str, str] = {}
    for detail in error.errors(include_url=False, include_input=False):
        field = str(detail["loc"][0]) if detail["loc"] else ""
        variable = f"{PREFIX}{field}: ".upper() if field else ""
        within = ": ".join(_place(part) for part in detail["loc"][1:])
        message = in_words(detail)
        # In a union, pydantic names the type that it has tried.
        if within and (taken := alternatives(settings.model_fields[field].annotation)):
            within, message = "", f"must be {taken}"
        problems.setdefault(variable, f"{within}: {message}" if within else message)
    return [variable + message for variable, message in problems.items()]


def _place(part: int | str) -> str:
    """Return the name of a place within a value: pydantic counts the values of a list from 0."""
    return f"value {part + 1}" if isinstance(part, int) else part


def _check_options(address: SplitResult) -> None:
    """Raise ValueError for options that are none of TLS, wrong ones, and unreadable files."""
    for name, value in parse_qsl(address.query, keep_blank_values=True):
        if name not in TLS_OPTIONS:
            raise ValueError(
                f"{name:.40} is no option of the address: only those of TLS are, "
                f"such as {', '.join(TLS_FILES)}"
            )
        if address.scheme != "rediss":
            raise ValueError(f"{name} needs TLS: rediss://HOST:PORT/0")
        if name == "ssl_cert_reqs" and value not in CERTIFICATE_CHECKS:
            raise ValueError(f"{name} must be one of {', '.join(CERTIFICATE_CHECKS)}")
        if name == "ssl_ca_certs" and (problem := tls_errors.authorities_problem(value)):
            raise ValueError(f"{name}: {problem}")
        if name in TLS_FILES:
            try:
                Path(value).open("rb").close()
            except OSError as error:
                raise ValueError(f"{name}: {value} can't be read ({error.strerror})") from None
    options = dict(parse_qsl(address.query))
    names = ("ssl_certfile", "ssl_keyfile", "ssl_password")
    if problem := tls_errors.client_certificate_problem(*map(options.get, names)):
        raise ValueError(problem)


def _has_server(url: str, schemes: tuple[str, ...]) -> bool:
    """Return whether `url` has one of `schemes`, a host, and a valid port if it has one.

    The errors of urllib are not passed on, because they quote passwords.
    """
    try:
        parts = urlsplit(url)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def refuse_unknown(environment: Mapping[str, str], known: type[BaseSettings]) -> None:
    """Raise SettingsInvalid, with the likely names, for ``VEIL_`` variables missing in `known`."""
    names = [PREFIX + name.upper() for name in known.model_fields]
    if issubclass(known, Settings):
        names += [variable + secret_files.SUFFIX for variable in known.secrets().values()]
    problems = []
    for variable in sorted(environment):
        if variable.upper().startswith(PREFIX) and variable.upper() not in names:
            near = difflib.get_close_matches(variable.upper(), names, n=1, cutoff=0.75)
            hint = f"did you mean {near[0]}?" if near else "docs/settings.md lists all settings"
            problems.append(f"{variable} is not a setting: {hint}")
    if problems:
        raise SettingsInvalid("; ".join(problems))
