"""The markers of a JPEG, and the kinds of its frames (ITU-T T.81, Annex B)."""

START = b"\xff\xd8\xff"
START_OF_IMAGE, END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
# Markers (T.81, Table B.1).
SOI, EOI, SOS, COM = 0xD8, 0xD9, 0xDA, 0xFE
APP0, APP1, APP2, APP14 = 0xE0, 0xE1, 0xE2, 0xEE
DHT, DAC, DQT, DRI = 0xC4, 0xCC, 0xDB, 0xDD
TABLES = {DHT, DAC, DQT, DRI}
# Start of frame: sequential and progressive, with Huffman and with arithmetic coding.
FRAME_HEADERS = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
PROGRESSIVE = {0xC2, 0xCA}
# Start of frame: lossless and differential.
UNHANDLED_FRAME_HEADERS = {0xC3, 0xC5, 0xC6, 0xC7, 0xC8, 0xCB, 0xCD, 0xCE, 0xCF}
DNL, DHP, EXP = 0xDC, 0xDE, 0xDF
UNHANDLED = UNHANDLED_FRAME_HEADERS | {DNL, DHP, EXP}
FRAME_SIZE_END = 5  # the offset after precision, height and width in a frame header
