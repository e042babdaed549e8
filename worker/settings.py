"""Worker settings: how faces are found and hidden, and the limits."""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import NoDecode

from tasks.delivery.attempts import LOCK_WAIT_SECONDS, OUTPUT_WAIT_SECONDS
from tasks.messages import Method, Region
from tasks.settings import PREFIX, Settings, split_commas
from tasks.storage.s3 import S3_ATTEMPTS
from worker.detection.presets import PRESETS, PassSettings
from worker.exif_fields import known_name

PICTURE_SECONDS = 2700  # a picture that takes longer has stalled, and the watchdog ends the worker
MOST_VIEWS = 3  # that detection takes of one picture: worker.images.Frame.views
# Get and head; get, list and get of a receipt; twice put, head, put and head; get, list and delete;
# after a failure head and put.
S3_CALLS = 18


def _shown(default: Any) -> str:
    if hasattr(default, "get_secret_value"):
        default = default.get_secret_value()
    if default is None:
        return ""
    if isinstance(default, bool):
        default = str(default).lower()
    if isinstance(default, tuple):
        default = ",".join(str(part) for part in default)
    return f"`{default}`"


def _by_preset(name: str) -> str:
    values = ((preset, getattr(look, name)) for preset, look in PRESETS.items())
    return "; ".join(f"{preset}: {_shown(value)}" for preset, value in values) + "."


class WorkerSettings(Settings):
    """Everything a worker can be told. The defaults of detection and masking are those of the
    published figures.
    """

    concurrency: int = Field(
        4, ge=1, le=256, description="Pictures in hand at once (threads; they share one detector)."
    )

    model: str | None = Field(
        None,
        description="A SavedModel with the Object Detection API signature: its folder, a ZIP of it, or the `s3://` "
        "address of one; empty for the default (CenterFace, built on first use).",
    )
    model_sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="What `VEIL_MODEL` must be, or nothing starts: the `digest` that `veil model info` prints, which "
        "is that of the model's files, or the SHA-256 of its ZIP. Without it whatever is at the address is used.",
    )
    engine: Literal["auto", "litert", "tensorflow"] = Field(
        "auto",
        description="What runs the model. `litert`: the default model in 8 bits, on CPUs alone. `auto`: that, but "
        "`tensorflow` on a GPU and for a model of your own. Their outputs differ a little, so the recipes do too.",
    )
    preset: Literal["fast", "balanced", "thorough"] = Field(
        "balanced",
        description="How hard faces are looked for; it sets the six below. docs/detection.md says what each finds "
        "and costs.",
    )
    scales: Annotated[tuple[int, ...] | None, NoDecode] = Field(
        None,
        description="Longer side, in pixels, of each detection pass, comma-separated. Large faces are found "
        f"in the small passes, small faces in the large one. {_by_preset('scales')}",
    )
    max_enlargement: float | None = Field(
        None,
        ge=1,
        le=4,
        description=f"How far a small picture may be enlarged. {_by_preset('max_enlargement')}",
    )
    enlarge_to: int | None = Field(
        None,
        ge=64,
        le=8192,
        description=f"Longer side, in pixels, beyond which a picture is not enlarged. {_by_preset('enlarge_to')}",
    )
    mirrored: bool | None = Field(
        None,
        description=f"Whether each pass is made a second time, mirrored. {_by_preset('mirrored')}",
    )
    turned: Literal["never", "doubt", "always"] | None = Field(
        None,
        description="Whether heads that lie on their side or stand upside down are looked for too, in turned passes; "
        f"`doubt`: where no face is found, or one that does not stand upright. {_by_preset('turned')}",
    )
    smallest_face: int | None = Field(
        None,
        ge=12,
        le=100_000,
        description="Side, in pixels of the picture, of the smallest face that the finest pass must show large enough "
        "for the detector, whatever the picture's dimensions: larger and longer pictures get finer passes, in tiles. "
        f"{_by_preset('smallest_face')}",
    )
    score_threshold: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Detections below this score are dropped; empty for the model's own value (0.17 for the "
        "default model; for yours what it states, else 0.5).",
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        le=128,
        description="Pictures of one shape that the detector takes at once; empty for 8 on a GPU and 1 on a "
        "CPU, where a batch gains nothing and costs memory.",
    )
    batch_wait_seconds: float = Field(
        0.01, ge=0, le=1, description="How long a picture waits for others to fill its batch."
    )
    detect_seconds: float = Field(
        10, gt=0, le=600, description="Limit for one detection pass, queueing included."
    )

    method: Method = Field(
        "surround",
        description="`surround` fills the region smoothly from the pixels around it, `fill` with black: nothing of "
        "what was there is kept. `blur` and `pixelate` keep the averages of three cells across a face, and tell more.",
    )
    region: Region = Field(
        0.7,
        description="Share of the face that is hidden, from its top: `top` (0.7), `full` (1), or any number from 0.5.",
    )
    margin: float = Field(
        0.1,
        ge=0,
        le=1,
        description="How far the region reaches beyond the face box, as a share of the box's sides.",
    )
    shape: Literal["rectangle", "ellipse"] = Field("rectangle", description="Shape of the region.")
    feather: float = Field(
        0.05,
        ge=0,
        le=0.5,
        description="Width of the soft edge around the region, as a share of the region's smaller side. Within the "
        "region nothing shines through.",
    )
    no_faces: Literal["publish", "hold"] = Field(
        "publish",
        description="What happens to a picture in which no face was found; `hold` writes no output, and puts it on the "
        "list of `veil review`.",
    )
    verify: Literal["off", "flag", "hold"] = Field(
        "off",
        description="Whether each output is looked at again. A face that is found in it is hidden too. If faces are "
        "found without end, it goes onto the list of `veil review`, published (`flag`) or held back (`hold`).",
    )

    max_bytes: int = Field(64 << 20, ge=1, description="Largest source object, in bytes.")
    max_pixels: int = Field(
        100_000_000,
        ge=1,
        description="Largest picture, in pixels: width × height × frames. 16 bits a channel count twice, WebP and AVIF "
        "twice, JPEG 2000 three times, for the memory that they need.",
    )
    max_frames: int = Field(500, ge=1, description="Most frames or pages of one picture.")
    keep_exif: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="EXIF fields that the output keeps, comma-separated, as `DateTimeOriginal,FocalLength`; empty for "
        "none. In JPEG, PNG, WebP and AVIF. Places, names, serial numbers, notes and thumbnails can't be kept.",
    )
    fetch_seconds: float = Field(
        120, gt=0, le=600, description="Limit for the whole download of a picture."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`json` is one object a line; `auto` chooses `console` on a terminal."
    )

    @field_validator("keep_exif", mode="before")
    @classmethod
    def _split_keep_exif(cls, value: Any) -> Any:
        return split_commas(value)

    @field_validator("keep_exif")
    @classmethod
    def _check_keep_exif(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted({known_name(name) for name in value}))

    @field_validator("scales", mode="before")
    @classmethod
    def _split_scales(cls, value: Any) -> Any:
        return None if value == "" else split_commas(value)

    @field_validator("scales")
    @classmethod
    def _check_scales(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is None:
            return None
        if not value or not all(64 <= side <= 8192 for side in value):
            raise ValueError("give one or more sides from 64 to 8192")
        return tuple(sorted(set(value)))

    @field_validator("model_sha256", mode="before")
    @classmethod
    def _in_lower_case(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("model_sha256")
    @classmethod
    def _check_pin(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and not info.data.get("model"):
            raise ValueError(f"it pins the model that {PREFIX}MODEL names, and that is not set")
        return value

    @field_validator(
        "model",
        "model_sha256",
        "score_threshold",
        "batch_size",
        "max_enlargement",
        "enlarge_to",
        "mirrored",
        "turned",
        "smallest_face",
        mode="before",
    )
    @classmethod
    def _empty_is_default(cls, value: Any) -> Any:
        return None if value == "" else value

    @model_validator(mode="after")
    def _deadlines(self) -> "WorkerSettings":
        # All checks of an output together take no longer than the first look at the picture may.
        detection = self.longest_look() * (1 if self.verify == "off" else 2)
        storage = (self.s3_connect_seconds + self.s3_read_seconds) * S3_CALLS * S3_ATTEMPTS
        longest = OUTPUT_WAIT_SECONDS + LOCK_WAIT_SECONDS + self.fetch_seconds + detection + storage
        if longest >= PICTURE_SECONDS:
            raise ValueError(
                f"a picture may take {longest:g} s ({PREFIX}FETCH_SECONDS, {PREFIX}DETECT_SECONDS for each pass "
                f"and view, {PREFIX}S3_… for each try); keep that below {PICTURE_SECONDS} s"
            )
        return self

    def longest_look(self) -> float:
        """Seconds that detection may take of one frame, and before the last frame of many is
        begun.
        """
        return self.detect_seconds * self.look().passes * MOST_VIEWS

    def look(self) -> PassSettings:
        """How pictures are looked at: as the preset says, but for what is set."""
        names = ("scales", "max_enlargement", "enlarge_to", "mirrored", "turned", "smallest_face")
        chosen = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(PRESETS[self.preset], **chosen)


def markdown_table() -> str:
    """All settings as a Markdown table, generated for the README."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in WorkerSettings.model_fields.items():
        rows.append(f"| `{PREFIX}{name.upper()}` | {_shown(field.default)} | {field.description} |")
    return "\n".join(rows)
