"""The metadata that outputs keep: density, and the fields of EXIF and XMP that were asked for."""
