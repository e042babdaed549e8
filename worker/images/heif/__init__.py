"""Pictures in the container of HEIF: AVIF and HEIC (ISO/IEC 23008-12)."""
