"""Settings shared by producers and workers, read from ``VEIL_`` environment variables."""

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Self
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tasks.errors import SettingsInvalid, VeilError
from tasks.routes import Routes
from tasks.signatures import Key

PREFIX = "VEIL_"

# A dead worker's pictures are taken over within a minute: after its lease, a look around, and a
# wait if Redis was away.
LONGEST_LEASE_SECONDS = 45

DATABASE = re.compile(
    r"[^/?#]*(/\d*)?(\?ssl_[^#]*)?"
)  # what may follow redis://: host, database, TLS options


class Settings(BaseSettings):
    """Where the queue and the object store are, and which places may be read and written.

    S3 credentials come from where boto3 looks for them: AWS_ACCESS_KEY_ID and
    AWS_SECRET_ACCESS_KEY, a profile, or the machine's role.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="Redis that holds the queues and the results (`redis://`, `rediss://`).",
    )
    redis_password: SecretStr | None = Field(
        None,
        description="Password for `VEIL_REDIS_URL`, so that it need not be part of the address.",
    )
    result_hours: float = Field(
        24,
        gt=0,
        le=8760,
        description="How long a report stays readable after its picture, in hours.",
    )
    lease_seconds: float = Field(
        20,
        ge=2,
        le=LONGEST_LEASE_SECONDS,
        description="How long a picture stays with a worker that gives no sign of life any more; a worker that lives "
        "renews this for all that it has in hand.",
    )
    grace_seconds: float = Field(
        25,
        ge=0,
        le=3600,
        description="How long a worker that is told to stop goes on with the pictures in hand; then they go back to "
        "the queue.",
    )
    s3_endpoint: str | None = Field(
        None, description="Address of an S3-compatible store; empty for Amazon S3."
    )
    s3_region: str = Field("us-east-1", description="Region of the buckets.")
    s3_connect_seconds: float = Field(
        5, gt=0, le=60, description="Limit for opening a connection to S3."
    )
    s3_read_seconds: float = Field(
        20, gt=0, le=120, description="Limit for S3 to send the next bytes."
    )

    routes: Annotated[tuple[str, ...], NoDecode] = Field(
        ("s3://raw=s3://clean",),
        min_length=1,
        description="Where pictures may be read and where their outputs go, `s3://SOURCE=s3://DESTINATION`, "
        "comma-separated. A message that names any other place is refused.",
    )
    webhook_token: SecretStr | None = Field(
        None,
        description="Token that senders of events to `veil watch --http` must show, as `Authorization: Bearer TOKEN`: "
        "32 characters or more, ASCII without spaces (`openssl rand -hex 32`).",
    )

    receipt_key: SecretStr | None = Field(
        None,
        description="Key that receipts are signed and outputs marked with (HMAC-SHA-256), of 32 characters or more. "
        "Several, comma-separated: the first signs, all are recognised. Commands need the same as the workers.",
    )

    metrics: str | None = Field(
        None,
        description="Where a worker, or `veil watch`, serves its Prometheus metrics, `HOST:PORT`; empty for nowhere. "
        "They ask for no password, and each process needs an address of its own.",
    )

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        if not _names_a_server(url, ("redis", "rediss")) or not DATABASE.fullmatch(
            url.partition("://")[2]
        ):
            raise ValueError(
                "must look like redis://HOST:PORT/0; quote what is special in a password, as %23 for #"
            )
        return value

    @field_validator("s3_endpoint")
    @classmethod
    def _endpoint_scheme(cls, value: str | None) -> str | None:
        if not value:
            return None
        if not _names_a_server(value, ("http", "https")) or "@" in urlsplit(value).netloc:
            raise ValueError("must look like http://HOST:PORT, without a user or a password")
        return value

    @field_validator("receipt_key")
    @classmethod
    def _check_receipt_key(cls, value: SecretStr | None) -> SecretStr | None:
        for text in split_commas(value.get_secret_value()) if value else ():
            Key.parse(text)
        return value

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, value: str | None) -> str | None:
        if not value:
            return None
        split_address(value)
        return value

    @field_validator("routes", mode="before")
    @classmethod
    def _split_routes(cls, value: Any) -> Any:
        return split_commas(value)

    @field_validator("routes")
    @classmethod
    def _check_routes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            Routes.parse(*value)
        except VeilError as error:
            raise ValueError(str(error)) from None
        return value

    @classmethod
    def load(cls, **values: Any) -> Self:
        """Return the settings of the environment; `values` take precedence.

        Raise SettingsInvalid with one line if one is wrong.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = "".join(f"{PREFIX}{part}: ".upper() for part in first["loc"][:1])
            raise SettingsInvalid(name + first["msg"].removeprefix("Value error, ")) from None

    def parsed_routes(self) -> Routes:
        return Routes.parse(*self.routes)

    def receipt_keys(self) -> tuple[Key, ...]:
        """The keys for receipts; the first signs."""
        texts = split_commas(self.receipt_key.get_secret_value()) if self.receipt_key else ()
        return tuple(Key.parse(text) for text in texts)

    def broker_url(self) -> str:
        """The Redis address with its password, for Celery alone: never log it."""
        parts = urlsplit(self.redis_url.get_secret_value())
        if parts.scheme == "rediss" and "ssl_cert_reqs" not in parts.query:
            # Celery refuses to choose; a certificate that nobody checks protects nothing.
            parts = parts._replace(
                query="&".join(filter(None, (parts.query, "ssl_cert_reqs=CERT_REQUIRED")))
            )
        if self.redis_password is None or not self.redis_password.get_secret_value():
            return urlunsplit(parts)
        user = quote(unquote(parts.username or ""), safe="")
        place = parts.netloc.rpartition("@")[2]
        password = quote(self.redis_password.get_secret_value(), safe="")
        return urlunsplit(parts._replace(netloc=f"{user}:{password}@{place}"))


def split_address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``; ValueError if it is none."""
    try:
        parts = urlsplit(f"//{text}")
        if parts.hostname and parts.port and parts.username is None and parts.netloc == text:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise ValueError("must be HOST:PORT, like 127.0.0.1:9100")


def split_commas(value: Any) -> Any:
    """The parts of a text list, trimmed and without empty ones; other values as they are, for
    pydantic to judge.
    """
    return (
        [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, str)
        else value
    )


def _names_a_server(url: str, schemes: tuple[str, ...]) -> bool:
    """Whether `url` has a scheme of `schemes`, a host and, if any, a port. urllib's errors quote
    passwords.
    """
    try:
        parts = urlsplit(url)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def refuse_unknown(environment: Mapping[str, str], known: type[BaseSettings]) -> None:
    """Raise SettingsInvalid for a ``VEIL_`` variable that `known` does not define, with the likely
    name.
    """
    names = [PREFIX + name.upper() for name in known.model_fields]
    for variable in sorted(environment):
        if variable.upper().startswith(PREFIX) and variable.upper() not in names:
            near = difflib.get_close_matches(variable.upper(), names, n=1, cutoff=0.75)
            hint = f"did you mean {near[0]}?" if near else "see the table of settings in the README"
            raise SettingsInvalid(f"{variable} is not a setting: {hint}")
