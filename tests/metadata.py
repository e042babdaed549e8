"""What exiftool, which shares no code with Veil, finds in a file besides its picture."""

import json
import subprocess
from pathlib import Path

# Groups (family 1) that hold nothing but what a decoder needs, and the colour profile.
PICTURE = {
    "SourceFile", "System", "File", "Composite", "JFIF", "Adobe", "GIF", "RIFF", "Jpeg2000", "Meta",
    "ICC_Profile", "ICC-header", "ICC-view", "ICC-meas", "ICC-chrm", "ICC-cicp",
}  # fmt: skip
# Of the groups that hold metadata as well, what describes the picture's layout.
LAYOUT = {
    "ExifTool": {"ExifToolVersion"},
    "PNG": {
        "ImageWidth", "ImageHeight", "BitDepth", "ColorType", "Compression", "Filter", "Interlace", "Palette",
        "Transparency", "AnimationFrames", "AnimationPlays", "ProfileName",
    },
    "QuickTime": {
        "MajorBrand", "MinorVersion", "CompatibleBrands", "HandlerType", "ImageSpatialExtent", "ImagePixelDepth",
        "AV1ConfigurationVersion", "ChromaFormat", "ChromaSamplePosition", "ColorProfiles", "ColorPrimaries",
        "TransferCharacteristics", "MatrixCoefficients", "VideoFullRangeFlag", "MediaDataSize", "MediaDataOffset",
        "MovieHeaderVersion", "TimeScale", "Duration", "PreferredRate", "PreferredVolume", "MatrixStructure",
        "NextTrackID", "CreateDate", "ModifyDate", "PreviewTime", "PreviewDuration", "PosterTime", "SelectionTime",
        "SelectionDuration", "CurrentTime", "AuxiliaryImageType",
    },
    "Track": {
        "TrackHeaderVersion", "TrackCreateDate", "TrackModifyDate", "TrackID", "TrackDuration", "TrackLayer",
        "TrackVolume", "MatrixStructure", "ImageWidth", "ImageHeight", "MediaHeaderVersion", "MediaCreateDate",
        "MediaModifyDate", "MediaTimeScale", "MediaDuration", "MediaLanguageCode", "HandlerType", "GraphicsMode",
        "OpColor", "CompressorID", "SourceImageWidth", "SourceImageHeight", "XResolution", "YResolution",
        "BitDepth", "VideoFrameRate", "ColorProfiles", "ColorPrimaries", "TransferCharacteristics",
        "MatrixCoefficients", "AV1ConfigurationVersion", "ChromaFormat", "ChromaSamplePosition", "PixelAspectRatio",
        "CleanAperture", "AuxiliaryImageType", "OtherFormat",
    },
    "IFD": {
        "ImageWidth", "ImageHeight", "BitsPerSample", "Compression", "PhotometricInterpretation", "StripOffsets",
        "SamplesPerPixel", "RowsPerStrip", "StripByteCounts", "PlanarConfiguration", "Predictor", "ExtraSamples",
        "SampleFormat", "JPEGTables", "YCbCrSubSampling", "ReferenceBlackWhite", "ColorMap", "YCbCrPositioning",
    },
}  # fmt: skip
NOT_LAYOUT = {"File": {"Comment", "TrailerInfo"}, "Jpeg2000": {"Comment", "XML"}, "GIF": {"Comment"}}


def leaks(paths: list[Path], kept: frozenset[str] = frozenset()) -> dict[str, list[str]]:
    """By path the tags, as Group:Name, that are neither layout, nor colour, nor among the names `kept`."""
    command = ["exiftool", "-j", "-a", "-G1", "-ee", "-charset", "filename=utf8", "--", *map(str, paths)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    found = json.loads(done.stdout)
    return {item["SourceFile"]: [tag for tag in item if not _is_fine(tag, kept)] for item in found}


def _is_fine(tag: str, kept: frozenset[str]) -> bool:
    group, _, name = tag.partition(":")
    family = group.rstrip("0123456789")
    if name in kept:
        return True
    if group in PICTURE:
        return name not in NOT_LAYOUT.get(group, set())
    return name in LAYOUT.get(family, set())
