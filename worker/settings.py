"""Worker settings: how faces are found and hidden, and the limits."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from tasks.deliveries import OUTPUT_WAIT_SECONDS, ROOM_WAIT_SECONDS
from tasks.s3 import S3_ATTEMPTS
from tasks.settings import PREFIX, Settings, split_commas
from worker.exif_fields import known_name

PICTURE_SECONDS = 1200  # a picture that takes longer has stalled, and the watchdog ends the worker
MOST_VIEWS = 3  # that detection takes of one picture: worker.images.Frame.views
S3_CALLS = 8  # get, head, put twice, and, where an output is replaced, list and delete; after a failure head and put


class WorkerSettings(Settings):
    """Everything a worker can be told. The defaults of detection and masking are those of the published figures."""

    concurrency: int = Field(
        4, ge=1, le=256, description="Pictures in hand at once (threads; they share one detector)."
    )

    model: str | None = Field(
        None,
        description="Folder of a SavedModel with the Object Detection API signature; empty for the default "
        "(CenterFace, built on first use).",
    )
    score_threshold: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Detections below this score are dropped; empty for the model's own value (0.18 for the "
        "default model, 0.5 for yours).",
    )
    scales: Annotated[tuple[int, ...], NoDecode] = Field(
        (400, 640, 1600),
        description="Longer side, in pixels, of each detection pass, comma-separated. Large faces are found "
        "in the small passes, small faces in the large one.",
    )
    max_enlargement: float = Field(
        2.0, ge=1, le=4, description="How far a small picture may be enlarged for detection."
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
    detect_seconds: float = Field(30, gt=0, le=600, description="Limit for one detection pass, queueing included.")

    region: float = Field(
        0.7, ge=0.5, le=1, description="Share of the face box that is hidden, from its top; 1 is the full face."
    )
    margin: float = Field(
        0.1, ge=0, le=1, description="How far the region reaches beyond the face box, as a share of the box's sides."
    )
    method: Literal["surround", "fill"] = Field(
        "surround",
        description="`surround` fills the region smoothly from the pixels around it, `fill` with black. "
        "Neither keeps anything of what was there.",
    )
    no_faces: Literal["publish", "hold"] = Field(
        "publish", description="What happens to a picture in which no face was found; `hold` writes no output."
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
    fetch_seconds: float = Field(120, gt=0, le=600, description="Limit for the whole download of a picture.")
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
        return split_commas(value)

    @field_validator("scales")
    @classmethod
    def _check_scales(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or not all(64 <= side <= 8192 for side in value):
            raise ValueError("give one or more sides from 64 to 8192")
        return tuple(sorted(set(value)))

    @field_validator("model", "score_threshold", "batch_size", mode="before")
    @classmethod
    def _empty_is_default(cls, value: Any) -> Any:
        return None if value == "" else value

    @model_validator(mode="after")
    def _deadlines(self) -> "WorkerSettings":
        detection = self.longest_look()
        storage = (self.s3_connect_seconds + self.s3_read_seconds) * S3_CALLS * S3_ATTEMPTS
        longest = OUTPUT_WAIT_SECONDS + ROOM_WAIT_SECONDS + self.fetch_seconds + detection + storage
        if longest >= PICTURE_SECONDS:
            raise ValueError(
                f"a picture may take {longest:g} s ({PREFIX}FETCH_SECONDS, {PREFIX}DETECT_SECONDS for each scale "
                f"and view, {PREFIX}S3_… for each try); keep that below {PICTURE_SECONDS} s"
            )
        return self

    def longest_look(self) -> float:
        """Seconds that detection may take of one frame, and before the last frame of many is begun."""
        return self.detect_seconds * len(self.scales) * MOST_VIEWS

    def model_path(self) -> Path | None:
        return Path(self.model).expanduser() if self.model else None


def markdown_table() -> str:
    """All settings as a Markdown table, generated for the README."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in WorkerSettings.model_fields.items():
        rows.append(f"| `{PREFIX}{name.upper()}` | {_shown(field.default)} | {field.description} |")
    return "\n".join(rows)


def _shown(default: Any) -> str:
    if hasattr(default, "get_secret_value"):
        default = default.get_secret_value()
    if default is None:
        return ""
    if isinstance(default, tuple):
        default = ",".join(str(part) for part in default)
    return f"`{default}`"
