"""The header of a VP8 key frame, which is the bitstream of a lossy WebP (RFC 6386)."""

FRAME_TAG_BYTES, FRAME_HEADER_BYTES = 3, 10  # of a key frame (9.1)
# The tag's upper bits are the size of the first partition.
PARTITION_SHIFT = 5
SEGMENTS = 4
# The bits of the magnitude of a quantizer, and of the level of a loop filter (9.3, 9.6).
QUANTIZER_BITS, FILTER_BITS = 7, 6


def first_partition_size(frame: bytes) -> int:
    """Return the number of bytes of the partition that follows the header of `frame`."""
    return int.from_bytes(frame[:FRAME_TAG_BYTES], "little") >> PARTITION_SHIFT


def with_shorter_first_partition(frame: bytes, cut: int) -> bytes:
    """Return `frame` without the last `cut` bytes of its first partition, which has more."""
    end = FRAME_HEADER_BYTES + first_partition_size(frame)
    tag = int.from_bytes(frame[:FRAME_TAG_BYTES], "little") - (cut << PARTITION_SHIFT)
    start = frame[FRAME_TAG_BYTES : end - cut]
    return tag.to_bytes(FRAME_TAG_BYTES, "little") + start + frame[end:]


def coefficient_partitions(frame: bytes) -> int:
    """Return the number of partitions with coefficients, which follow the first one (19.2)."""
    header = _Header(frame[FRAME_HEADER_BYTES:])
    header.take(2)  # color_space, clamping_type
    if header.take(1):  # segmentation_enabled
        _skip_segmentation(header)
    header.take(1 + 6 + 3)  # filter_type, loop_filter_level, sharpness_level
    if header.take(1) and header.take(1):  # loop_filter_adj_enable, mode_ref_lf_delta_update
        for _ in range(4 + 4):  # reference frames and modes
            header.skip_optional(FILTER_BITS + 1)
    return 1 << header.take(2)  # log2_nbr_of_dct_partitions


def _skip_segmentation(header: "_Header") -> None:
    """Skip the fields of update_segmentation (19.2)."""
    updates_map, updates_data = header.take(1), header.take(1)
    if updates_data:
        header.take(1)  # segment_feature_mode
        for bits in (QUANTIZER_BITS, FILTER_BITS):
            for _ in range(SEGMENTS):
                header.skip_optional(bits + 1)
    if updates_map:
        for _ in range(SEGMENTS - 1):
            header.skip_optional(8)


class _Header:
    """Decodes numbers of bits that are 0 and 1 with equal probability (7.3)."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 2
        self._value, self._range, self._shifts = int.from_bytes(data[:2]), 255, 0

    def take(self, count: int) -> int:
        """Return the number in the next `count` bits."""
        number = 0
        for _ in range(count):
            number = number << 1 | self._bit()
        return number

    def skip_optional(self, count: int) -> None:
        """Skip a flag, and `count` bits if it is set."""
        if self.take(1):
            self.take(count)

    def _bit(self) -> int:
        split = (self._range + 1) // 2
        is_set = self._value >= split << 8
        if is_set:
            self._value -= split << 8
            self._range -= split
        else:
            self._range = split
        while self._range < 128:
            self._range <<= 1
            self._value <<= 1
            self._shifts += 1
            if self._shifts % 8 == 0:
                # Zeros follow the last byte.
                self._value |= int.from_bytes(self._data[self._at : self._at + 1])
                self._at += 1
        return int(is_set)
