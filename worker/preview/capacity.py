"""The time and the cost of a whole prefix, by the model of docs/scaling.md."""

from dataclasses import dataclass

BUSY_SHARE = 0.9  # of the cores of a worker; in the rest of the time all of them wait
PUTS_A_PICTURE = 2  # the receipt and the output
READS_A_PICTURE = 3  # the source, and the heads of output and source
KEYS_A_LISTING = 1000
SECONDS_AN_HOUR = 3600
BYTES_A_TERABYTE = 1e12


@dataclass(frozen=True)
class Prices:
    """Prices in dollars: of a core for an hour, of a million requests, of a terabyte a month."""

    core_hour: float = 0.04
    million_puts: float = 5.0
    million_reads: float = 0.40
    terabyte_month: float = 23.0


@dataclass(frozen=True)
class Capacity:
    """The cost of a prefix: core hours, hours on `cores` cores, and dollars, once and a month."""

    pictures: int
    cores: int
    core_hours: float
    hours: float
    processor_dollars: float
    request_dollars: float
    output_bytes: float
    storage_dollars_a_month: float

    @property
    def dollars(self) -> float:
        """The dollars that are paid once."""
        return self.processor_dollars + self.request_dollars


def capacity(
    pictures: int,
    seconds_a_picture: float,
    output_bytes: float,
    cores: int,
    prices: Prices,
    has_requests: bool = True,
) -> Capacity:
    """Return what `pictures` take, each with so many processor seconds.

    `output_bytes` are those of all outputs. A folder `has_requests` to no store.
    """
    core_hours = pictures * seconds_a_picture / BUSY_SHARE / SECONDS_AN_HOUR
    puts = pictures * PUTS_A_PICTURE + pictures / KEYS_A_LISTING  # A listing costs what a PUT does.
    reads = pictures * READS_A_PICTURE
    requests = puts / 1e6 * prices.million_puts + reads / 1e6 * prices.million_reads
    terabytes = output_bytes / BYTES_A_TERABYTE
    return Capacity(
        pictures=pictures,
        cores=cores,
        core_hours=core_hours,
        hours=core_hours / cores,
        processor_dollars=core_hours * prices.core_hour,
        request_dollars=requests if has_requests else 0.0,
        output_bytes=output_bytes,
        storage_dollars_a_month=terabytes * prices.terabyte_month if has_requests else 0.0,
    )
