"""Replace single blocks of a JPEG's quantized coefficients; all others stay as they are.

The work is done by C code with libjpeg-turbo (`tools/jpeg_blocks/`). It is compiled to WebAssembly,
runs in a memory of its own, which it cannot leave, and calls nothing outside.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import wasmtime
from numpy.typing import NDArray

MODULE = Path(__file__).with_name("transcoder.wasm")
PAGE_BYTES = 1 << 16
ALIGNMENT = 16
BLOCK = 64  # coefficients
SPARE_BYTES = 32 << 20  # addresses that a memory reserves beyond its size
MAX_COMPONENTS = 4


class TranscodingFailed(Exception):
    """The transcoder did not accept a JPEG, or had not enough memory for it."""


@dataclass(frozen=True)
class Scan:
    """The parameters of a scan (T.81, B.2.3); `components` are numbers from 0 up."""

    components: Sequence[int]
    first: int
    last: int
    high: int
    low: int

    def packed(self) -> bytes:
        """Return the scan as libjpeg's jpeg_scan_info, nine numbers of 32 bits."""
        padding = [0] * (MAX_COMPONENTS - len(self.components))
        coefficients = (self.first, self.last, self.high, self.low)
        return struct.pack("<9i", len(self.components), *self.components, *padding, *coefficients)


@dataclass(frozen=True)
class Patch:
    """New blocks of a component.

    `content` is a gray JPEG with the component's quantization table. `places` uint32 [n, 2] are the
    column and the row, in the component, of each of its blocks, row by row.
    """

    component: int
    content: bytes
    places: NDArray[np.uint32]


def transcoded(
    content: bytes, patches: Sequence[Patch], scans: Sequence[Scan], memory: int
) -> bytes:
    """Return the JPEG `content` with the blocks of `patches`, coded in `scans`.

    Its Huffman tables are made anew. `memory` is about the number of bytes that the coefficients
    need. Raises TranscodingFailed where libjpeg fails or warns.
    """
    script = b"".join(scan.packed() for scan in scans)
    with _failures():
        machine = _Machine(memory)
        (address,) = machine.put([script])
        machine.open(content, patches)
        machine.call("read")
        start = machine.call("write", address, len(scans))
        return machine.get(start, machine.call("size"))


def spliced(content: bytes, patches: Sequence[Patch]) -> bytes | None:
    """Return the compressed data of a JPEG of one sequential scan with the blocks of `patches`.

    It is coded with the tables of `content`. Returns None if these lack a symbol, and for other
    JPEGs. Raises TranscodingFailed where libjpeg fails or warns.
    """
    with _failures():
        machine = _Machine(0)
        machine.open(content, patches)
        start = machine.call("splice")
        return machine.get(start, machine.call("size")) if start else None


def coefficients(content: bytes, components: int) -> list[NDArray[np.int16]]:
    """Return the quantized coefficients of each component of a JPEG, [rows, columns, 64].

    Tests and benchmarks compare them. Raises TranscodingFailed where libjpeg fails or warns.
    """
    found = []
    with _failures():
        machine = _Machine(len(content))
        machine.open(content, [])
        machine.call("read")
        for number in range(components):
            size = machine.call("rows", number), machine.call("columns", number), BLOCK
            address = machine.call("coefficients", number)
            copied = machine.get(address, size[0] * size[1] * size[2] * 2)
            found.append(np.frombuffer(copied, "<i2").reshape(size))
    return found


@contextmanager
def _failures() -> Iterator[None]:
    """Raise TranscodingFailed for the errors of WebAssembly."""
    try:
        yield
    except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
        raise TranscodingFailed(str(error).partition("\n")[0]) from None


class _Machine:
    """One instance of the module, for one JPEG."""

    def __init__(self, memory: int) -> None:
        """Reserve `memory` bytes at once, because growing copies."""
        engine, module = _compiled()
        self._store = wasmtime.Store(engine)
        instance = wasmtime.Instance(self._store, module, [])
        self._functions = instance.exports(self._store)
        self._memory = cast(wasmtime.Memory, self._functions["memory"])
        self._memory.grow(self._store, -(-memory // PAGE_BYTES))

    def call(self, name: str, *arguments: int) -> int:
        """Call a function of the module, and return the address or the size that it returns."""
        function = cast(wasmtime.Func, self._functions[name])
        returned = function(self._store, *map(_signed, arguments))
        return int(returned or 0) % (1 << 32)

    def open(self, content: bytes, patches: Sequence[Patch]) -> None:
        """Open a JPEG, and take the blocks that replace some of its own."""
        arguments = [content]
        for patch in patches:
            arguments += [patch.content, patch.places.astype("<u4").tobytes()]
        address, *others = self.put(arguments)
        self.call("open", address, len(content))
        for patch, blocks, places in zip(patches, others[::2], others[1::2], strict=True):
            size, count = len(patch.content), len(patch.places)
            self.call("replace", patch.component, blocks, size, places, count)

    def put(self, contents: Sequence[bytes]) -> list[int]:
        """Copy `contents` into the machine's memory, and return their addresses."""
        offsets = [0]
        for content in contents:
            offsets.append(offsets[-1] + len(content) + -len(content) % ALIGNMENT)
        start = self.call("allocate", offsets.pop())
        addresses = [start + offset for offset in offsets]
        for content, address in zip(contents, addresses, strict=True):
            self._memory.write(self._store, content, address)
        return addresses

    def get(self, address: int, size: int) -> bytes:
        """Return a copy of `size` bytes of the machine's memory."""
        return bytes(self._memory.read(self._store, address, address + size))


def _signed(number: int) -> int:
    """Return `number` as the 32-bit integer that WebAssembly's functions take."""
    return number - (1 << 32) if number >= 1 << 31 else int(number)


@cache
def _compiled() -> tuple[wasmtime.Engine, wasmtime.Module]:
    """Return the module, compiled once in each process.

    A memory reserves few addresses, because those of a picture process are limited. Accesses are
    therefore checked by instructions, not by the processor.
    """
    config = wasmtime.Config()
    config.memory_reservation = 0
    config.memory_guard_size = 0
    config.memory_reservation_for_growth = SPARE_BYTES
    config.signals_based_traps = False
    config.parallel_compilation = False
    engine = wasmtime.Engine(config)
    return engine, wasmtime.Module(engine, MODULE.read_bytes())
