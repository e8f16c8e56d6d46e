"""Things of one's own, written by `loraexp new` into a folder of any name, count for every verb."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from loraexp import cli
from loraexp.cli.main import VERBS
from loraexp.records.reading import load_records
from tests.support.helpers import REPOSITORY


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder of one's own in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "my things"


def written(folder: Path, *kinds: str) -> list[str]:
    for kind in kinds:
        assert cli.main(["new", kind, f"my_{kind}", "--to", str(folder)]) == 0
    return ["--config-dir", str(folder / "conf")]


def test_new_things_run_as_they_are_written_alone_and_in_a_grid(folder: Path, capsys) -> None:
    own = written(folder, "init", "optimizer", "task")
    quick = ["experiment=debug", "output_root=outs", "train.eval_every=0"]
    assert cli.main([*quick, "init=my_init", "optimizer=my_optimizer", *own]) == 0
    assert cli.main([*own, "-m", *quick, "init=my_init", "seed=0,1"]) == 0
    runs = sorted(Path("outs").rglob("record.json"))
    assert cli.main([*own, *quick, "task=my_task", "init=lora"]) == 0
    assert cli.main([*own, "show", "task=my_task", "model=tiny-bert"]) == 0
    assert "⟦good⟧" in capsys.readouterr().out
    assert len(runs) == 3
    capsys.readouterr()
    assert cli.main(["verify", *own, str(runs[0].parent)]) == 0
    assert cli.main([*own, *quick, "init=my_ini"]) == 2
    assert capsys.readouterr().err.strip().endswith("nearest: my_init")


def test_ones_own_initializer_stands_beside_the_others_in_a_comparison(
    folder: Path, capsys
) -> None:
    """From `loraexp new` to the table: the grid of rates widens by itself where its edge is best,
    and the table has the rate of every row; nothing points to a table without the row."""
    own = written(folder, "init")
    small = ["task=tweets", "task.limit_train=32", "wandb.mode=disabled", "device=cpu"]
    words = ["my_init", "--against", "lora", "--variant", "smoke", *small]
    assert cli.main(["compare", *own, *words]) == 0
    text, said = capsys.readouterr()
    assert re.search(r"^\| my_init \| \**−\d\.\d{4} ± ", text, re.M)
    rates = text.partition("**lr chosen by best/value**")[2]
    assert re.search(r"^\| my_init \| 0\.0\d+ \| .* \| 3 \|$", rates, re.M)
    assert "the best is at the edge of its widened grid, lr=0.025; raise grid.extend.lr" in text
    assert "8 runs, 0 finished already" in said and "12 runs, 8 finished already" in said
    assert "loraexp table" not in said
    assert said.count("12 of 12 runs finished") == 1
    assert cli.main(["compare", *own, *words]) == 0
    again, said = capsys.readouterr()
    assert again.partition("### ")[2] == text.rpartition("### ")[2]
    assert "8 runs, 8 finished already" in said and "[1/" not in said


def test_a_class_of_torch_optim_is_a_rule(folder: Path, capsys) -> None:
    place = folder / "conf" / "optimizer"
    place.mkdir(parents=True)
    (place / "nadam.yaml").write_text(
        "name: nadam\n_target_: torch.optim.NAdam\n_partial_: true\nmomentum_decay: 0.004\n"
    )
    own = [
        "--config-dir",
        str(folder / "conf"),
        "experiment=debug",
        "output_root=outs",
        "optimizer=nadam",
        "init=lora",
    ]
    assert cli.main([*own, "optimizer.momentum_decy=1"]) == 2
    assert "momentum_decay" in capsys.readouterr().err
    assert cli.main(own) == 0


def test_every_verb_looks_in_the_same_folders(folder: Path, capsys) -> None:
    own = written(folder, "init", "sweep")
    place = folder / "conf" / "sweeps"
    place.mkdir()
    (folder / "my_sweep.yaml").rename(place / "mine.yaml")
    text = (place / "mine.yaml").read_text().replace("# mine: ", "mine: ")
    (place / "mine.yaml").write_text(text)
    capsys.readouterr()
    for words in (["list", "inits"], ["plan", "mine"], ["table", "mine", "--format", "csv"]):
        assert cli.main([*words, *own]) == 0
        assert "my_init" in capsys.readouterr().out or words[0] != "list"
    # LORAEXP_CONFIG_DIR holds
    assert cli.main(["list", "sweeps"]) == 0 and "mine " in capsys.readouterr().out
    assert cli.main(["plan", "min", *own]) == 2
    assert "nearest: mine" in capsys.readouterr().err


def test_a_folder_that_is_not_there_or_takes_a_name_is_one_line(folder: Path, capsys) -> None:
    assert cli.main(["list", "--config-dir", "nowhere"]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    (folder / "conf" / "init").mkdir(parents=True)
    (folder / "conf" / "init" / "lora.yaml").write_text("name: lora\n")
    assert cli.main(["--config-dir", str(folder / "conf"), "--cfg", "job"]) == 2
    assert "init=lora is one of loraexp itself" in capsys.readouterr().err


def test_new_refuses_what_is_there_and_what_is_no_name(folder: Path, capsys) -> None:
    assert cli.main(["new", "init", "lora", "--to", str(folder)]) == 2
    assert cli.main(["new", "init", "my-init", "--to", str(folder)]) == 2
    written(folder, "init")
    assert cli.main(["new", "init", "my_init", "--to", str(folder)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.rpartition("; ")[2] for line in errors[:1]] == ["choose another"]
    assert "expected a Python name" in errors[1] and "there is such a file" in errors[2]


def test_help_version_and_a_closed_pipe(capsys) -> None:
    assert cli.main(["--version"]) == 0 and capsys.readouterr().out.startswith("loraexp ")
    assert cli.main(["help"]) == 0
    page = capsys.readouterr().out
    assert all(f"loraexp {verb} " in page for verb in cli.main.__globals__["VERBS"])
    assert cli.main(["help", "help"]) == 0 and capsys.readouterr().out == page
    assert cli.main(["help", "table"]) == 0
    assert "[KEY=VALUE ...]" in capsys.readouterr().out
    assert cli.main(["table"]) == 2
    assert (
        capsys.readouterr().err
        == "loraexp: table: the following arguments are required: NAME; see loraexp table --help\n"
    )
    command = f"{sys.executable} -m loraexp list | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stderr == ""


def test_a_line_of_help_is_a_whole_sentence(capsys) -> None:
    """Not what stood on the first line of a docstring; a verb takes no overrides for required."""
    assert cli.main(["help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for verb in VERBS:
        [line] = [line for line in lines if line.startswith(f"loraexp {verb} ")]
        words = line.removeprefix(f"loraexp {verb}").strip()
        page = " ".join(getattr(*entry_of(verb)).__doc__.split())
        assert page.startswith(words.rstrip(".")), verb
        assert words.endswith(".") and not words.rstrip(".").endswith((",", " of", " the")), verb
        assert cli.main(["help", verb]) == 0
        usage = " ".join(capsys.readouterr().out.partition("\n\n")[0].split())
        assert "KEY=VALUE ..." not in usage.replace("[KEY=VALUE ...]", ""), usage
        values = usage.split()[3:]
        assert not [word for word in values if re.fullmatch(r"\[?[a-z]+\]?", word)], usage


def entry_of(verb: str) -> tuple[ModuleType, str]:
    module, name = VERBS[verb]
    return importlib.import_module(f"loraexp.cli.{module}"), name


def test_one_of_a_group_lists_the_group(capsys) -> None:
    assert cli.main(["list", "models"]) == 0
    every = capsys.readouterr().out
    assert cli.main(["list", "model"]) == 0
    assert capsys.readouterr().out == every and "minilm" in every


def test_runs_lists_what_there_is(tmp_path: Path, capsys) -> None:
    root = f"output_root={tmp_path / 'outs'}"
    assert cli.main(["experiment=debug", root, "init=lora"]) == 0
    assert cli.main(
        ["experiment=debug", root, "init=lora", "seed=1", "train.batch_size=1", "lr=1e30"]
    ) in (0, 1)
    capsys.readouterr()
    assert cli.main(["runs", str(tmp_path / "outs")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "dev/accuracy" in lines[1] and "finished" in lines[1]
    assert cli.main(["runs", str(tmp_path / "nowhere")]) == 2


def test_python_has_what_the_command_line_has(tmp_path: Path) -> None:
    """In a process of its own, as a notebook would."""
    code = f"""
import loraexp
done = loraexp.run("experiment=debug", "init=lora", "output_root={tmp_path}")
assert done.record["status"] == "finished"
assert list(loraexp.load_records("{tmp_path}")["init.name"]) == ["lora"]
small = {{"variant": "smoke"}}
counts = loraexp.sweep("lora_one_slides_phase_portrait", "output_root={tmp_path}", **small)
assert counts["finished"] == 1
frame = loraexp.table("lora_one_slides_phase_portrait", "output_root={tmp_path}", **small)
figure = loraexp.plot("lora_one_slides_phase_portrait", "output_root={tmp_path}", **small)
assert len(frame) and figure.get_size_inches().min() > 1
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_run_is_found_by_its_id_or_name_under_any_output_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["experiment=debug", "init=lora", "output_root='my results/deep/down'"]
    assert cli.main(words) == 0
    [path] = tmp_path.rglob("record.json")
    name = path.parent.name
    for word in (name, name.rpartition("-")[2], str(path), str(path.parent)):
        assert cli.main(["verify", word]) == 0
    assert cli.main(["verify", name, str(path.parent)]) == 0
    with pytest.raises(ValueError, match="typo: there is no such folder"):
        load_records("typo")
    with pytest.raises(ValueError, match="no run in it; there are some in my results/deep/down"):
        load_records("my results")
    capsys.readouterr()
    assert cli.main(["runs", "my results"]) == 0
    assert name in capsys.readouterr().out
