"""Find metadata in files with exiftool, which shares no code with Veil."""

import json
import subprocess
from pathlib import Path
from typing import Any

# Groups of exiftool's family 1 that hold only what a decoder needs, and the colour profile.
PICTURE = {
    "SourceFile", "System", "File", "Composite", "JFIF", "Adobe",
    "ICC_Profile", "ICC-header", "ICC-view", "ICC-meas", "ICC-chrm", "ICC-cicp",
}  # fmt: skip
# The tags that describe the picture's layout, in groups that also hold metadata.
LAYOUT = {
    "ExifTool": {"ExifToolVersion"},
    "GIF": {
        "GIFVersion", "ImageWidth", "ImageHeight", "HasColorMap", "ColorResolutionDepth",
        "BitsPerPixel", "BackgroundColor", "AnimationIterations", "FrameCount", "Duration",
        "TransparentColor",
    },
    "RIFF": {
        "ImageWidth", "ImageHeight", "VP8Version", "HorizontalScale", "VerticalScale", "WebP_Flags",
        "AlphaIsUsed", "AlphaPreprocessing", "AlphaFiltering", "AlphaCompression",
        "BackgroundColor", "AnimationLoopCount", "FrameCount", "Duration",
    },
    "Jpeg2000": {
        "MajorBrand", "MinorVersion", "CompatibleBrands", "ImageWidth", "ImageHeight",
        "NumberOfComponents", "BitsPerComponent", "Compression", "ColorSpace", "ColorSpecMethod",
        "ColorSpecPrecedence", "ColorSpecApproximation", "CaptureXResolution",
        "CaptureYResolution", "CaptureXResolutionUnit", "CaptureYResolutionUnit",
        "DisplayXResolution", "DisplayYResolution", "DisplayXResolutionUnit",
        "DisplayYResolutionUnit",
    },
    "Meta": {"PrimaryItemReference"},
    "PNG": {
        "ImageWidth", "ImageHeight", "BitDepth", "ColorType", "Compression", "Filter", "Interlace",
        "Palette", "Transparency", "AnimationFrames", "AnimationPlays", "ProfileName", "Gamma",
        "SRGBRendering", "WhitePointX", "WhitePointY", "RedX", "RedY", "GreenX", "GreenY", "BlueX",
        "BlueY",
    },
    "PNG-pHYs": {"PixelUnits", "PixelsPerUnitX", "PixelsPerUnitY"},
    "PNG-cICP": {
        "ColorPrimaries", "TransferCharacteristics", "MatrixCoefficients", "VideoFullRangeFlag",
    },
    "QuickTime": {
        "MajorBrand", "MinorVersion", "CompatibleBrands", "HandlerType", "ImageSpatialExtent",
        "ImagePixelDepth", "AV1ConfigurationVersion", "ChromaFormat", "ChromaSamplePosition",
        "ColorProfiles", "ColorPrimaries", "TransferCharacteristics", "MatrixCoefficients",
        "VideoFullRangeFlag", "MediaDataSize", "MediaDataOffset", "MovieHeaderVersion", "TimeScale",
        "Duration", "PreferredRate", "PreferredVolume", "MatrixStructure", "NextTrackID",
        "CreateDate", "ModifyDate", "PreviewTime", "PreviewDuration", "PosterTime", "SelectionTime",
        "SelectionDuration", "CurrentTime", "AuxiliaryImageType",
    },
    "Track": {
        "TrackHeaderVersion", "TrackCreateDate", "TrackModifyDate", "TrackID", "TrackDuration",
        "TrackLayer", "TrackVolume", "MatrixStructure", "ImageWidth", "ImageHeight",
        "MediaHeaderVersion", "MediaCreateDate", "MediaModifyDate", "MediaTimeScale",
        "MediaDuration", "MediaLanguageCode", "HandlerType", "GraphicsMode", "OpColor",
        "CompressorID", "SourceImageWidth", "SourceImageHeight", "XResolution", "YResolution",
        "BitDepth", "VideoFrameRate", "ColorProfiles", "ColorPrimaries", "TransferCharacteristics",
        "MatrixCoefficients", "AV1ConfigurationVersion", "ChromaFormat", "ChromaSamplePosition",
        "PixelAspectRatio", "CleanAperture", "AuxiliaryImageType", "OtherFormat",
    },
    "IFD": {
        "ImageWidth", "ImageHeight", "BitsPerSample", "Compression", "PhotometricInterpretation",
        "StripOffsets", "SamplesPerPixel", "RowsPerStrip", "StripByteCounts", "PlanarConfiguration",
        "Predictor", "ExtraSamples", "SampleFormat", "JPEGTables", "YCbCrSubSampling",
        "ReferenceBlackWhite", "ColorMap", "YCbCrPositioning", "XResolution", "YResolution",
        "ResolutionUnit", "Orientation",
    },
}  # fmt: skip
# The tags that hold metadata, in groups of PICTURE.
NOT_LAYOUT = {"File": {"Comment", "TrailerInfo"}}


def leaks(paths: list[Path]) -> dict[str, list[str]]:
    """Return for each path the tags, as Group:Name, that are neither layout nor colour."""
    command = ["exiftool", "-j", "-a", "-G1", "-ee", "-charset", "filename=utf8", "--"]
    command += map(str, paths)
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    found = {}
    for item in json.loads(done.stdout):
        found[item["SourceFile"]] = [tag for tag in _tags(item) if not _is_allowed(tag)]
    return found


def _tags(item: dict[str, Any]) -> set[str]:
    """Return the tags of one file.

    In a JPEG-compressed TIFF, exiftool takes the strip of the page for a preview.
    """
    tags = set(item)
    if item.get("IFD0:Compression") == "JPEG" and "IFD0:StripOffsets" not in item:
        tags -= {
            "IFD0:PreviewImage",
            "IFD0:PreviewImageStart",
            "IFD0:PreviewImageLength",
            "ExifTool:Warning",
        }
    return tags


def _is_allowed(tag: str) -> bool:
    group, _, name = tag.partition(":")
    family = group.rstrip("0123456789")
    if group in PICTURE:
        return name not in NOT_LAYOUT.get(group, set())
    return name in LAYOUT.get(group, LAYOUT.get(family, set()))
