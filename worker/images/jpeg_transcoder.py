"""Replace single blocks of a JPEG's quantized coefficients; all others stay as they are.

libjpeg-turbo's transcoder does the work. It is compiled to WebAssembly (`tools/jpeg_blocks/`), runs
in a memory of its own, which it cannot leave, and calls nothing outside.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import wasmtime
from numpy.typing import NDArray

MODULE = Path(__file__).with_name("jpeg_blocks.wasm")
PAGE_BYTES = 1 << 16
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
    content: bytes, patches: Sequence[Patch], scans: Sequence[Scan], optimize: bool, memory: int
) -> bytes:
    """Return the JPEG `content` with the blocks of `patches`, coded in `scans`.

    Without `optimize` it keeps its Huffman tables. `memory` is about the number of bytes that the
    coefficients need. Raises TranscodingFailed where libjpeg fails or warns.
    """
    try:
        machine = _Machine(memory)
        machine.call("read", *machine.put(content))
        for patch in patches:
            places = patch.places.astype("<u4").tobytes()
            arguments = [*machine.put(patch.content), machine.put(places)[0], len(patch.places)]
            machine.call("replace", patch.component, *arguments)
        script = b"".join(scan.packed() for scan in scans)
        start = machine.call("write", machine.put(script)[0], len(scans), optimize)
        return machine.get(start, machine.call("size"))
    except wasmtime.WasmtimeError as error:
        raise TranscodingFailed(str(error).partition("\n")[0]) from None
    except wasmtime.Trap as error:
        raise TranscodingFailed(error.message.partition("\n")[0]) from None


class _Machine:
    """One instance of the module, for one JPEG."""

    def __init__(self, memory: int) -> None:
        """Reserve `memory` bytes at once, because growing copies."""
        engine, module = _compiled()
        self._store = wasmtime.Store(engine)
        self._exports = wasmtime.Instance(self._store, module, []).exports(self._store)
        self._memory = self._exports["memory"]
        self._memory.grow(self._store, -(-memory // PAGE_BYTES))

    def call(self, name: str, *arguments: int) -> int:
        """Call a function of the module; an address that it returns is unsigned."""
        returned = self._exports[name](self._store, *map(_signed, arguments))
        return 0 if returned is None else returned % (1 << 32)

    def put(self, content: bytes) -> tuple[int, int]:
        """Copy `content` into the machine's memory, and return its address and its size."""
        address = self.call("allocate", len(content))
        self._memory.write(self._store, content, address)
        return address, len(content)

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
