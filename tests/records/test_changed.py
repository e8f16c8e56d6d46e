"""A record that was changed by hand is used, and every reader says so."""

import json
import re
from pathlib import Path

import pytest

from loraexp.records import reading, record
from loraexp.records.content import content
from loraexp.records.record import Record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = {"task": {"name": "tweets"}, "lr": 1e-3, "seed": 0}
    with Record(tmp_path / "tweets-tiny" / "lora-s0-0123456789", "0123456789", config) as own:
        own.update(metrics={"dev": {"accuracy": 0.8125, "loss": float("nan")}}, cost={"n": 3})
        own.finish()
    return tmp_path / "tweets-tiny" / "lora-s0-0123456789"


def test_what_was_written_is_not_changed(folder: Path) -> None:
    found = content(folder)
    assert found.finished and not found.changed
    assert found.record is not None and "seal" not in found.record
    assert reading.read(folder).note is None


def test_spaces_and_the_order_of_keys_are_no_change(folder: Path) -> None:
    path = folder / "record.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(stored.items()))))
    assert not content(folder).changed


def test_every_flipped_digit_of_a_number_is_seen(folder: Path) -> None:
    path = folder / "record.json"
    text = path.read_text()
    for place in [found.start() for found in re.finditer(r"\d", text)]:
        other = str((int(text[place]) + 1) % 10)
        path.write_text(text[:place] + other + text[place + 1 :])
        found = content(folder)
        assert found.error is not None or found.changed, text[place - 30 : place + 5]


def test_every_reader_says_that_a_record_was_changed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from loraexp.cli.main import main

    path = folder / "record.json"
    path.write_text(path.read_text().replace("0.8125", "0.9125"))
    assert reading.read(folder).note == f"{path} was changed by hand since loraexp wrote it"
    rows = reading.load_records(folder.parent.parent)
    assert rows["dev/accuracy"][0] == 0.9125
    assert rows["note"][0] == "record.json was changed by hand since loraexp wrote it"
    assert main(["runs", str(folder.parent.parent)]) == 0
    assert "changed by hand" in capsys.readouterr().out


def test_a_score_added_to_a_changed_record_does_not_hide_it(folder: Path) -> None:
    entry = {"key": "again", "overrides": [], "metrics": {}, "rows": {}}
    record.add_evaluation(folder, entry)
    assert not content(folder).changed
    path = folder / "record.json"
    path.write_text(path.read_text().replace("0.8125", "0.9125"))
    record.add_evaluation(folder, entry)
    found = content(folder)
    assert found.changed and found.record is not None and len(found.record["evaluations"]) == 2


def test_a_record_of_an_older_version_has_no_digest(folder: Path) -> None:
    path = folder / "record.json"
    stored = json.loads(path.read_text())
    del stored["seal"]
    path.write_text(json.dumps(stored))
    assert content(folder).finished and not content(folder).changed
