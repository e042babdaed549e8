"""The settings of a worker: how it finds and hides faces, and its limits."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_network
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import NoDecode

from tasks.delivery.attempts import LOCK_WAIT_SECONDS, OUTPUT_WAIT_SECONDS
from tasks.errors import SettingsInvalid
from tasks.messages import Method, Region
from tasks.routes import Route
from tasks.routes_file import Problem, problems_of
from tasks.secret_files import SUFFIX
from tasks.settings import PREFIX, S3_ATTEMPTS, Settings, Words, split_commas
from worker.detection.presets import PRESETS, PassSettings
from worker.metadata.exif_fields import known_name
from worker.metadata.kept import Gps, HeifOutput, Kept, known_schema
from worker.model_settings import MAX_SCALE, MIN_SCALE, PLATES, SHA256, LabelRules, ModelAddress
from worker.process import processors
from worker.upload_settings import UploadSettings

HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
MIN_PASSWORD_LENGTH = 12
LOOPBACK = ("127.0.0.1", "localhost", "::1")  # hosts that only this machine reaches
PICTURE_SECONDS = 2700  # The watchdog ends the worker if a picture takes longer.
# The longest wait of a picture for a process, and for the end of other pictures, and the number of
# such waits: two for each of its two tries.
PROCESS_WAIT_SECONDS = 30.0
PROCESS_WAITS = 4
PICTURES_IN_TRANSIT = 2  # pictures that are fetched or stored while others are worked on
IN_PROCESS_PICTURES = 4  # pictures in flight without picture processes
# The views of a frame (see worker.images.Frame.views) that may take as long as all of their passes
# may. Most frames have one to three views; of those with more, the others must be faster.
SLOWEST_VIEWS = 3
# The calls to S3 for one picture at most: get the source and its tags, and head the output; get,
# list and get the receipt, or list and get two of a picture that was held; twice put the receipt,
# head the source, put and head the output; get the output, list and delete receipts; and after a
# failure head the source and put the probe.
MAX_S3_CALLS = 19
PRESET_SETTINGS = (
    "scales",
    "max_enlargement",
    "enlarge_to",
    "closer_to",
    "mirrored",
    "turned",
    "smallest_face",
)
"""The settings whose values a preset chooses, unless they are set."""


def _text(default: Any) -> str | None:
    """Return a default as its variable would have it, None for None."""
    if hasattr(default, "get_secret_value"):
        default = default.get_secret_value()
    if default is None:
        return None
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, dict):
        return ""
    if isinstance(default, tuple):
        return ",".join(str(part) for part in default)
    return str(default)


def _markdown(default: Any) -> str:
    """Return a default as code in Markdown, or nothing for none."""
    text = _text(default)
    return f"`{text}`" if text else ""


def _by_preset(name: str) -> str:
    values = [f"{preset}: {_markdown(getattr(look, name))}" for preset, look in PRESETS.items()]
    return "; ".join(values) + "."


class WorkerSettings(UploadSettings):
    """The settings of producers and those of workers alone.

    The published figures were measured with the defaults of detection and masking.
    """

    processes: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = Field(
        "auto",
        description="Number of processes in which a worker, or `veil anonymize`, decodes, masks "
        "and encodes pictures, one picture in each. `auto` follows from the processors and the "
        "memory that the worker may use. 0 does all the work in the worker's own process, where a "
        "picture that crashes a library ends the worker.",
    )
    concurrency: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Number of pictures that a worker has in flight. Each has a thread, and all "
        "share one detector. Empty for two more than it has processes for pictures, which are "
        "fetched and stored meanwhile, and for 4 with `VEIL_PROCESSES=0`.",
    )

    model: str | None = Field(
        None,
        description="A SavedModel with the Object Detection API signature: its folder, a ZIP file "
        "of it, or the `s3://` address of a ZIP file. Empty for the default model (CenterFace, "
        "built on first use).",
    )
    model_sha256: str | None = Field(
        None,
        description="Digest that `VEIL_MODEL` must have; with another one, nothing starts. It is "
        "the `digest` that `veil model info` prints (that of the model's files), or the SHA-256 of "
        "the ZIP file. If it is empty, any model at the address is used.",
    )
    models: Words = Field(
        (),
        description="Several models in place of `VEIL_MODEL`, comma-separated: `default`, "
        "`plates`, or what `VEIL_MODEL` takes. `#sha256=DIGEST` after one pins it as "
        "`VEIL_MODEL_SHA256` does. docs/models.md has examples.",
    )
    plates: bool = Field(
        False,
        description="Whether the plate detector that comes with Veil runs too, as `plates` in "
        "`VEIL_MODELS` says. It finds licence plates, which have the label `plate`.",
    )
    rules: Annotated[LabelRules, NoDecode] = Field(
        {},
        description="Rules for the labels that the models find, separated by semicolons, such as "
        "`plate: method=fill margin=0.2; document: hold; *: method=fill`. The names in a rule are "
        "`method`, `region`, `margin`, `shape`, `smallest`, `hold`, `ignore`, `threshold`, "
        "`preset`, `scales` and `turned`; docs/models.md explains them. `*` is every label without "
        "a rule, but not `FACE`. Without a rule, all of an object is hidden, and of a face "
        "`VEIL_REGION`.",
    )
    engine: Literal["auto", "litert", "tensorflow"] = Field(
        "auto",
        description="Library that runs a model. `litert` runs its network in 8 bits, on CPUs "
        "only; the default model and exports of fine-tuned ones have one. `auto` chooses `litert` "
        "for such a model on a machine without a GPU, else `tensorflow`. A model that has nothing "
        "but this network, as that of plates, runs on LiteRT with any engine. The outputs of both "
        "differ a little, so their recipes differ too.",
    )
    preset: Literal["fast", "balanced", "thorough"] = Field(
        "balanced",
        description="Effort of detection: the values of the next seven settings. docs/detection.md "
        "says what each preset finds and costs.",
    )
    scales: Annotated[tuple[int, ...] | None, NoDecode, BeforeValidator(split_commas)] = Field(
        None,
        description="Longer side, in pixels, of each detection pass, comma-separated. Small passes "
        f"find large faces, and large passes find small faces. {_by_preset('scales')}",
    )
    max_enlargement: float | None = Field(
        None,
        ge=1,
        le=4,
        description=f"Largest factor by which a small picture is enlarged. "
        f"{_by_preset('max_enlargement')}",
    )
    enlarge_to: int | None = Field(
        None,
        ge=64,
        le=8192,
        description="Longer side, in pixels, beyond which a whole picture is not enlarged. "
        f"{_by_preset('enlarge_to')}",
    )
    closer_to: int | None = Field(
        None,
        ge=0,
        le=8192,
        description="Longer side, in pixels, to which closer passes enlarge a picture, in tiles "
        "where the passes over the whole picture see something small or doubtful. "
        f"0 for no enlargement there. {_by_preset('closer_to')}",
    )
    mirrored: bool | None = Field(
        None,
        description="Whether each pass is repeated on the mirrored picture. "
        f"{_by_preset('mirrored')}",
    )
    turned: Literal["never", "doubt", "always"] | None = Field(
        None,
        description="When to search also for heads that lie on their side or stand upside down, in "
        "turned passes. `doubt`: if no face is certain, or if one does not stand upright. "
        f"{_by_preset('turned')}",
    )
    smallest_face: int | None = Field(
        None,
        ge=12,
        le=100_000,
        description="Side, in pixels of the picture, of the smallest face that the finest pass "
        "must show large enough for the detector, whatever the size of the picture. Larger and "
        f"longer pictures get finer passes, in tiles. {_by_preset('smallest_face')}",
    )
    score_threshold: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Lowest score of a detection that counts. Empty for the model's own threshold: "
        "0.17 for the default model, for another model the one that it states, else 0.5.",
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        le=128,
        description="Largest number of canvases of one shape in a batch of the model, and of those "
        "of a picture that the model has at once (at most 8). Empty for 8 on a GPU and 1 on a CPU, "
        "where batches save no time and cost memory. A GPU without memory for so many gets smaller "
        "batches.",
    )
    batch_wait_seconds: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Longest time that a canvas waits for its batch to fill while the device is "
        "busy with another.",
    )
    detect_seconds: float = Field(
        10,
        gt=0,
        le=600,
        description="Time limit for one detection pass, including its wait for the detector.",
    )

    method: Method = Field(
        "surround",
        description="How the region is hidden. `surround` fills it smoothly from the pixels around "
        "it, and `fill` fills it with black: neither keeps anything of the face. `blur` and "
        "`pixelate` keep the averages of three cells across a face, and so reveal more.",
    )
    region: Region = Field(
        0.7,
        description="Share of the face that is hidden, from its top: `top` (0.7), `full` (1), or a "
        "number from 0.5 to 1.",
    )
    margin: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Distance by which the region exceeds the face box, as a share of the sides of "
        "the box.",
    )
    shape: Literal["rectangle", "ellipse"] = Field(
        "rectangle", description="Shape of the region: `rectangle` or `ellipse`."
    )
    feather: float = Field(
        0.05,
        ge=0,
        le=0.5,
        description="Width of the soft edge around the region, as a share of the region's smaller "
        "side. Inside the region, nothing of the face shows through.",
    )
    no_faces: Literal["publish", "hold"] = Field(
        "publish",
        description="What happens to a picture without faces. `hold` writes no output and puts the "
        "picture on the list of `veil review`.",
    )
    verify: Literal["off", "flag", "hold"] = Field(
        "off",
        description="Whether each output is compared with its picture, and detection is repeated "
        "on it (the residual check). Faces that detection finds are hidden too. If it still finds "
        "faces in the end, or the output shows what should be hidden, the picture is put on the "
        "list of `veil review`, and is published (`flag`) or held (`hold`).",
    )

    max_bytes: int = Field(128 << 20, ge=1, description="Size limit of a source, in bytes.")
    max_pixels: int = Field(
        210_000_000,
        ge=1,
        description="Size limit of a picture, in pixels: width × height × frames. Pictures that "
        "need more memory count more: twice with four channels (alpha, CMYK) and as GIF, three "
        "times with 16 bits a channel, and as WebP and AVIF, six times as JPEG 2000.",
    )
    max_frames: int = Field(500, ge=1, description="Limit for the frames or pages of a picture.")
    keep_exif: Words = Field(
        (),
        description="EXIF fields that outputs keep in JPEG, PNG, WebP and AVIF, comma-separated, "
        "such as `DateTimeOriginal,FocalLength`. Empty for none. Places, names, serial numbers, "
        "notes and thumbnails can't be kept.",
    )
    keep_xmp: Words = Field(
        (),
        description="Schemas of XMP that outputs keep in JPEG, PNG, WebP and AVIF. `GPano` keeps "
        "how a 360° picture is projected, for its viewers. Empty for none. Programs, dates and "
        "cameras can't be kept.",
    )
    heif_output: HeifOutput = Field(
        "jpeg",
        description="Format of the outputs of HEIC: `jpeg`, or `avif`, which keeps transparency "
        "and, with the extra `avif`, more than 8 bits and HDR. `refuse` refuses HEIC. "
        "`VEIL_HEIF_SUFFIX` sets the suffix of their keys.",
    )
    keep_gps: Gps = Field(
        "false",
        description="Whether outputs keep the position where a picture was taken, in the EXIF of "
        "JPEG, PNG, WebP and AVIF: not at all (`false`), latitude and longitude to two decimals of "
        "a degree, about a kilometre (`rounded`), or exactly, with altitude and direction of view "
        "(`true`). docs/privacy.md says what this means.",
    )
    fetch_seconds: float = Field(
        120, gt=0, le=600, description="Time limit for the download of a picture."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto",
        description="Form of the log. `json` writes one object a line. `auto` chooses `console` on "
        "a terminal, else `json`.",
    )

    review_password: SecretStr | None = Field(
        None,
        description="Password of `veil review serve`, of 12 characters or more, with which a "
        "reviewer logs in under any name. Empty for single-use tokens, which the command prints.",
    )
    review_user_header: str | None = Field(
        None,
        description="Header in which a proxy names the reviewer that it has authenticated, such as "
        "`X-Forwarded-User`. `veil review serve` then has no login of its own, and refuses "
        "requests without the header.",
    )
    review_proxies: Words = Field(
        ("127.0.0.1", "::1"),
        description="Addresses of the proxies whose `VEIL_REVIEW_USER_HEADER` is believed, or "
        "their networks, such as `10.4.0.0/16`, comma-separated.",
    )
    review_url: str | None = Field(
        None,
        description="Address at which reviewers open `veil review serve`, such as "
        "`https://review.example.org`, if it is not the one that it listens on. `veil status` "
        "links to it.",
    )
    flower_url: str | None = Field(
        None, description="Address of Flower, to which the review desk links."
    )
    grafana_url: str | None = Field(
        None, description="Address of Grafana, to which the review desk links."
    )

    @field_validator("review_password")
    @classmethod
    def _check_review_password(cls, value: SecretStr | None) -> SecretStr | None:
        text = value.get_secret_value() if value else ""
        if text and len(text) < MIN_PASSWORD_LENGTH:
            raise ValueError(f"must have {MIN_PASSWORD_LENGTH} characters or more")
        return value if text else None

    @field_validator("review_user_header")
    @classmethod
    def _check_user_header(cls, value: str | None) -> str | None:
        if value and not HEADER_NAME.fullmatch(value):
            raise ValueError("must be the name of a header, such as X-Forwarded-User")
        return value or None

    @field_validator("review_proxies")
    @classmethod
    def _check_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                ip_network(text)
            except ValueError:
                raise ValueError(
                    f"{text!r:.60} is no address and no network, such as 10.0.0.5 or 10.4.0.0/16"
                ) from None
        return value

    @field_validator("review_url", "flower_url", "grafana_url")
    @classmethod
    def _check_page(cls, value: str | None) -> str | None:
        if not value:
            return None
        parts = urlsplit(value)
        is_page = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        if not is_page or "@" in parts.netloc:
            raise ValueError("must look like https://HOST, without a user or a password")
        return value.rstrip("/")

    @field_validator("review_url")
    @classmethod
    def _check_review_url(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "")
        if parts.scheme == "http" and parts.hostname not in LOOPBACK:
            raise ValueError(
                "passwords and pictures could be read on the way: give the https:// address of a "
                "proxy"
            )
        if parts.path or parts.query or parts.fragment:
            raise ValueError("the desk needs a host or a port of its own")
        return value

    @field_validator("keep_exif")
    @classmethod
    def _check_keep_exif(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted({known_name(name) for name in value}))

    @field_validator("keep_xmp")
    @classmethod
    def _check_keep_xmp(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted({known_schema(name) for name in value}))

    @field_validator("keep_gps", mode="before")
    @classmethod
    def _text_of_switch(cls, value: Any) -> Any:
        return str(value).lower() if isinstance(value, (bool, str)) else value

    @field_validator("scales")
    @classmethod
    def _check_scales(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is None:
            return None
        if not value or not all(MIN_SCALE <= side <= MAX_SCALE for side in value):
            raise ValueError(f"give one or more sides from {MIN_SCALE} to {MAX_SCALE}")
        return tuple(sorted(set(value)))

    @field_validator("model", mode="before")
    @classmethod
    def _text_of_path(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("model_sha256", mode="before")
    @classmethod
    def _lower_case(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("model_sha256")
    @classmethod
    def _check_pin(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and not SHA256.fullmatch(value):
            raise ValueError("must be a SHA-256, 64 hexadecimal digits")
        if value and not info.data.get("model"):
            raise ValueError(f"it pins the model of {PREFIX}MODEL, which is not set")
        return value

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if value and info.data.get("model"):
            raise ValueError(f"{PREFIX}MODEL names another model: put both into {PREFIX}MODELS")
        parsed = [ModelAddress.parse(text) for text in value]
        if len(set(parsed)) < len(parsed):
            raise ValueError("a model is named twice")
        return value

    @field_validator("plates")
    @classmethod
    def _check_plates(cls, value: bool) -> bool:
        if value:
            ModelAddress.parse(PLATES)
        return value

    def _check_together(self) -> None:
        super()._check_together()
        if self.review_password is not None and self.review_user_header is not None:
            raise ValueError(
                f"{PREFIX}REVIEW_PASSWORD and {PREFIX}REVIEW_USER_HEADER are both set: either the "
                "desk asks for a password, or a proxy authenticates; unset one"
            )
        # All residual checks of an output together may take as long as the first detection.
        detection = self.max_detection_seconds() * (1 if self.verify == "off" else 2)
        if detection >= self.anonymizer_seconds():
            longest = PICTURE_SECONDS - self.anonymizer_seconds() + detection
            raise ValueError(
                f"a picture may take {longest:g} s, and the limit is {PICTURE_SECONDS} s: lower "
                f"{PREFIX}FETCH_SECONDS, {PREFIX}DETECT_SECONDS (a limit for each pass and view) "
                f"or {PREFIX}S3_… (limits for each try)"
            )

    @classmethod
    def load_for_outputs(cls) -> Self:
        """Return the settings of a process that writes outputs, from the environment.

        Raises SettingsInvalid, also if the metadata of outputs would tell what hashed names hide.
        """
        settings = cls.load()
        hashed = [route.name for route in settings.parsed_routes() if route.names.are_hashed]
        if hashed and not settings.receipt_keys():
            raise SettingsInvalid(
                f'{PREFIX}RECEIPT_KEY: the route {hashed[0]} has output_names = "hash", which '
                "needs this key too: without it, the metadata of an output have a digest of its "
                "source's address, with which anybody can test a guess at the name"
            )
        return settings

    def route_problems(self, settings: Mapping[str, Any]) -> list[Problem]:
        """Return what is wrong with the settings of a route, beside those of the environment."""
        try:
            if settings:
                self._changed(settings)
        except ValidationError as error:
            return problems_of(error)
        return []

    def of_route(self, route: Route) -> "WorkerSettings":
        """Return these settings with those of `route`; themselves if it has none."""
        if not route.settings:
            return self
        changed = self._changed(route.settings)
        changed._parsed_routes = self._parsed_routes
        return changed

    def _changed(self, changes: Mapping[str, Any]) -> "WorkerSettings":
        """Return these settings with `changes`, and with the default route."""
        known = {name: getattr(self, name) for name in self.model_fields_set}
        default_route = type(self).model_fields["routes"].default
        return type(self)(**{**known, "routes_file": None, "routes": default_route, **changes})

    def model_addresses(self) -> tuple[ModelAddress, ...]:
        """Return the models of a worker, in their order."""
        if self.models:
            found = [ModelAddress.parse(text) for text in self.models]
        else:
            found = [ModelAddress(self.model, self.model_sha256)]
        if self.plates and (bundled := ModelAddress.parse(PLATES, f"{PREFIX}PLATES")) not in found:
            found.append(bundled)
        return tuple(found)

    def anonymizer_seconds(self) -> float:
        """Return the time in seconds that PICTURE_SECONDS leaves for the work on the file."""
        storage = (self.s3_connect_seconds + self.s3_read_seconds) * MAX_S3_CALLS * S3_ATTEMPTS
        waits = OUTPUT_WAIT_SECONDS + LOCK_WAIT_SECONDS + PROCESS_WAITS * PROCESS_WAIT_SECONDS
        return PICTURE_SECONDS - waits - self.fetch_seconds - storage

    def picture_processes(self) -> int:
        """Return the number of picture processes; 0 for none."""
        return processors.picture_processes() if self.processes == "auto" else self.processes

    def pictures_in_flight(self) -> int:
        """Return the number of pictures that are worked on at once."""
        if self.concurrency is not None:
            return self.concurrency
        processes = self.picture_processes()
        return processes + PICTURES_IN_TRANSIT if processes else IN_PROCESS_PICTURES

    def longest_view_seconds(self) -> float:
        """Return the longest time in seconds that detection in one view of a frame may be given."""
        detections = 1 if self.verify == "off" else 2
        return self.anonymizer_seconds() / detections / SLOWEST_VIEWS

    def max_detection_seconds(self) -> float:
        """Return the longest time in seconds that detection may take.

        The last frame, and the last view of each frame, must begin before this time is over.
        """
        return self.detect_seconds * self.pass_settings().passes * SLOWEST_VIEWS

    def kept_metadata(self) -> Kept:
        """Return what outputs keep of their sources."""
        return Kept(self.keep_exif, self.keep_xmp, self.keep_gps, self.heif_output)

    def pass_settings(self) -> PassSettings:
        """Return the settings of the passes: the preset's, except for those that are set."""
        chosen = {name: getattr(self, name) for name in PRESET_SETTINGS}
        return replace(
            PRESETS[self.preset],
            **{name: value for name, value in chosen.items() if value is not None},
        )


def changes_no_picture(name: str) -> bool:
    """Return whether the setting `name` has no part in what an output shows or holds."""
    of_servers = name in Settings.model_fields or name.endswith("_url")
    return of_servers or name.startswith(("review_", "upload_", "receipt_"))


def table() -> list[tuple[str, str | None, str]]:
    """Return the variable, the default and the meaning (Markdown) of each setting."""
    rows = []
    secrets = WorkerSettings.secrets()
    for name, field in WorkerSettings.model_fields.items():
        variable, meaning = f"{PREFIX}{name.upper()}", field.description or ""
        if name in secrets:
            meaning += f" `{variable}{SUFFIX}` may name a file with it instead."
        rows.append((variable, _text(field.default), meaning))
    return rows


def markdown_table() -> str:
    """Return all settings as a Markdown table, for docs/settings.md."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for variable, default, meaning in table():
        rows.append(f"| `{variable}` | {_markdown(default)} | {meaning} |")
    return "\n".join(rows)
