"""The contact sheet: pictures with the boxes of their faces, beside their outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

TILE = 400, 300  # pixels of one picture on the sheet
CAPTION = 26
GAP = 12
PAIRS_A_ROW = 2
MAX_HEIGHT = 4000  # of the sheet, in pixels; a higher sheet is hard to open
ROW_HEIGHT = TILE[1] + CAPTION + GAP
MAX_PAIRS = (MAX_HEIGHT - GAP) // ROW_HEIGHT * PAIRS_A_ROW
PAPER, INK, BOX = (250, 249, 246), (40, 40, 44), (226, 60, 38)


@dataclass(frozen=True)
class Pair:
    """A picture and its output; `boxes` are x1 y1 x2 y2 in pixels of the upright picture.

    `caption` says what they are.
    """

    name: str
    caption: str
    before: Path
    after: Path
    boxes: Sequence[Sequence[float]]


def make(pairs: Sequence[Pair], path: Path) -> int:
    """Write `pairs` to `path`, a JPEG, and return the number of those that it shows.

    It shows at most MAX_PAIRS, evenly spread over all of them.
    """
    count = min(len(pairs), MAX_PAIRS)
    shown = [pairs[number * len(pairs) // count] for number in range(count)]
    font = ImageFont.load_default(15)
    width = 2 * TILE[0] + GAP
    rows = -(-len(shown) // PAIRS_A_ROW)
    sheet = Image.new(
        "RGB", (PAIRS_A_ROW * (width + 2 * GAP) + GAP, rows * ROW_HEIGHT + GAP), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    for i, pair in enumerate(shown):
        left = GAP + (i % PAIRS_A_ROW) * (width + 2 * GAP)
        top = GAP + (i // PAIRS_A_ROW) * ROW_HEIGHT
        draw.text((left, top + 4), f"{pair.name}  ·  {pair.caption}", INK, font)
        for image, x in ((_before(pair), left), (_open(pair.after), left + TILE[0] + GAP)):
            tile = ImageOps.contain(image, TILE, Image.Resampling.LANCZOS)
            sheet.paste(tile, (x + (TILE[0] - tile.width) // 2, top + CAPTION))
    sheet.save(path, quality=88)
    return len(shown)


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright.convert("RGBA"))
        return upright.convert("RGB")


def _before(pair: Pair) -> Image.Image:
    image = _open(pair.before)
    draw = ImageDraw.Draw(image)
    line = max(2, round(2 * max(image.width / TILE[0], image.height / TILE[1])))
    for box in pair.boxes:
        draw.rectangle(tuple(box), outline=BOX, width=line)
    return image
