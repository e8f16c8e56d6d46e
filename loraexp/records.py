"""All records under a folder as one tidy table, for notebooks and summaries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas


def load_records(root: str | Path = "outputs") -> pandas.DataFrame:
    """One row for each run under `root`: what it was, how it ended, `split/metric` values and `cost/…`.

    The configuration is flattened to dotted columns (`init.name`, `lr`, `train.batch_size`, …). A record that cannot be
    read is a row with status "unreadable": it is shown, never dropped.
    """
    import pandas

    rows = []
    for path in sorted(Path(root).glob("*/*/record.json")):
        row: dict[str, Any] = {"folder": str(path.parent)}
        try:
            record = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            rows.append(row | {"status": "unreadable", "error": f"{path}: {error}"})
            continue
        row |= {key: record[key] for key in ("run_id", "status", "started", "ended")}
        row |= flatten(record["config"])
        row |= {f"{split}/{name}": value for split, metrics in record["metrics"].items() for name, value in metrics.items()}
        row |= {f"cost/{name}": value for name, value in record["cost"].items() if not isinstance(value, dict)}
        row["best/value"] = (record["best"] or {}).get("value")
        row["error"] = (record.get("error") or {}).get("message")
        rows.append(row)
    return pandas.DataFrame(rows)


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones; lists stay as they are."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
