"""Print the decisions of the desk, from their records beside the receipts."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.addresses import PrefixUri
from tasks.bulk.in_order import in_order
from tasks.bulk.places import Places
from tasks.storage import decisions, receipts
from tasks.storage.decisions import Decision, Record
from tasks.storage.s3 import ObjectStore
from worker.printing import print_summary, printable, summarized
from worker.settings import WorkerSettings

THREADS = 16  # records that are read at once
NO_DECISION = tuple(field.name for field in fields(Decision))
NOT_IN_A_NAME = "an output with a long key"


class DecisionList:
    """The decisions on outputs below an address, oldest first.

    Raises BucketNotAllowed and InvalidRequest for an address to which no route leads.
    """

    def __init__(self, settings: WorkerSettings, address: str) -> None:
        self._keys = settings.receipt_keys()
        outputs = PrefixUri.parse(address)
        routes = settings.parsed_routes()
        route = Places.of_outputs(outputs, routes, self._keys).route
        self._whole = Places.of_outputs(route.destination, routes, self._keys)
        self._outputs = outputs
        self._store = ObjectStore.connect(settings, connections=THREADS)

    def print(self, as_json: bool) -> bool:
        """Print the decisions. Return whether every record counts."""
        count = flawed = 0
        table = Table("at", "by", "decision", "output", "version of the source", "flaw")
        is_table = sys.stdout.isatty() and not as_json

        def summarize() -> None:
            if is_table and count:
                Console().print(table)
            bad = f", {flawed:,} of them don't count" if flawed else ""
            unjudged = "" if self._keys else "; signatures are not checked: no VEIL_RECEIPT_KEY"
            print_summary(f"{count:,} decisions{bad}{unjudged}")

        with summarized(summarize):
            for record in self._records():
                count += 1
                flawed += record.flaw is not None
                if as_json:
                    print(json.dumps(self._line(record)))
                elif is_table:
                    table.add_row(*(Text(printable(cell)) for cell in _cells(record)))
                else:
                    print(printable("  ".join(filter(None, _cells(record)))))
        return not flawed

    def _records(self) -> Iterator[Record]:
        names = decisions.names(self._store, self._whole.output, self._outputs)
        oldest_first = sorted(names, key=lambda name: (name.stamp, str(name.uri)))
        read = partial(decisions.read, self._store, keys=self._keys)
        for record in in_order(read, oldest_first, THREADS):
            if record is not None:
                yield record

    def _line(self, record: Record) -> dict[str, Any]:
        """Return the JSON object of a record."""
        output, found = record.name.output, record.decision
        return {
            "output": None if output is None else str(output),
            "source": self._source(record),
            **(dict.fromkeys(NO_DECISION) if found is None else asdict(found)),
            "record": str(record.name.uri),
            "flaw": record.flaw,
            "checked": bool(self._keys),
        }

    def _source(self, record: Record) -> str | None:
        """Return the source by the route; None if the record is of another or of an unknown one."""
        output, found = record.name.output, record.decision
        if output is None or found is None or found.source_mark is None:
            return None
        key, metadata = self._whole.output.relative(output), {receipts.SOURCE: found.source_mark}
        source = self._whole.source_of(self._store, key, metadata)
        return None if source is None else str(source)


def _cells(record: Record) -> list[str]:
    """Return when, who, what, the output, the version of the source, and the flaw."""
    output = NOT_IN_A_NAME if record.name.output is None else str(record.name.output)
    flaw = record.flaw or ""
    found = record.decision
    if found is None:
        return ["", "", "", output, "", flaw]
    version = "" if found.source_etag is None else f"source {found.source_etag}"
    return [found.at, found.by, _what(found), output, version, flaw]


def _what(decision: Decision) -> str:
    """Return the decision with its options, or with the number of marked faces."""
    if decision.action == "mark":
        return f"mark {len(decision.exposed_xyxy or ()):,} exposed, sample {decision.sample}"
    options = [f"{name}={json.dumps(value)}" for name, value in decision.options.items()]
    return " ".join([decision.action, *options])
