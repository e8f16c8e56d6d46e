"""What a file from elsewhere may name: a stranger's module is not even imported."""

from pathlib import Path

import pytest

from loraexp import config
from loraexp.cli.main import main
from loraexp.config import ConfigError, boundary, search
from loraexp.sweep import reading
from loraexp.sweep.cells import expand

RUN = ["experiment=smoke", "device=cpu", "wandb.mode=disabled"]
SWEEP = """
title: a stranger's
paper: none
artifact: none
kind: table
base: [experiment=smoke, wandb.mode=disabled, device=cpu{more}]
rows: {{lora: {{label: LoRA, overrides: [{row}]}}}}
columns: {{tweets: {{label: Tweets, overrides: [task=tweets], value: dev/accuracy}}}}
"""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that can be imported and leaves a mark when it is."""
    place = tmp_path / "site"
    place.mkdir()
    mark = tmp_path / "imported"
    (place / "stranger_code.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        "from loraexp.initializers.lora import lora as evil\n"
    )
    monkeypatch.syspath_prepend(str(place))
    return mark


def sweep_of(tmp_path: Path, row: str, more: str = "") -> str:
    path = tmp_path / "theirs.yaml"
    path.write_text(SWEEP.format(row=row, more=more))
    return str(path)


def test_a_strangers_sweep_does_not_import_what_it_names(
    tmp_path: Path, stranger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = sweep_of(tmp_path, "init=lora, init._target_=stranger_code.evil")
    for verb in ("sweep", "plan", "table"):
        assert main([verb, name, f"output_root={tmp_path}"]) == 2
        said = capsys.readouterr().err
        assert "init._target_=stranger_code.evil" in said and "--trust" in said
    assert not stranger.exists()
    assert main(["plan", name, f"output_root={tmp_path}", "--trust"]) == 0
    assert stranger.exists()


def test_what_is_typed_beside_a_sweep_is_the_users_own(tmp_path: Path, stranger: Path) -> None:
    name = sweep_of(tmp_path, "init=lora")
    words = ["init._target_=stranger_code.evil", f"output_root={tmp_path}"]
    assert main(["plan", name, *words]) == 0
    assert stranger.exists()


@pytest.mark.parametrize(
    "target",
    [
        "loraexp.scoring.sandbox.run",
        "loraexp.machine.files.replace",
        "os.system",
        "loraexp.cli.main",
    ],
)
def test_a_computed_sweep_reaches_the_papers_experiments_alone(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(
        "title: a\npaper: none\nartifact: none\nkind: figure\n"
        f"compute: {{_target_: {target}, program: 'raise SystemExit', unsafe_code: true}}\n"
    )
    assert main(["sweep", str(path), f"output_root={tmp_path}"]) == 2
    assert f"compute._target_={target}" in capsys.readouterr().err


def test_what_a_module_of_loraexp_imports_is_not_loraexps() -> None:
    node = {"_target_": "loraexp.tasks.generation.dataclass"}
    with boundary.within(Path("config.yaml")), pytest.raises(ConfigError, match="no function of"):
        config.target(node, "task")
    assert config.target(node, "task")


def test_the_code_of_ones_own_folders_is_reached(tmp_path: Path) -> None:
    """By a yaml of the folder that names it, or because it lies where the folder's code does."""
    own = tmp_path / "conf"
    (own / "optimizer").mkdir(parents=True)
    (own / "optimizer" / "nadam.yaml").write_text("name: nadam\n_target_: torch.optim.NAdam\n")
    (tmp_path / "own_module_here.py").write_text("def mine(): ...\n")
    nodes = [({"_target_": "torch.optim.NAdam"}, "optimizer")]
    nodes += [({"_target_": "own_module_here.mine"}, "init")]
    with boundary.within(Path("config.yaml")):
        for node, group in nodes:
            with pytest.raises(ConfigError, match="--config-dir"):
                config.target(node, group)
        search.use([str(own)])
        for node, group in nodes:
            assert callable(config.target(node, group))
        with pytest.raises(ConfigError, match="--config-dir"):
            config.target({"_target_": "torch.optim.SGD"}, "optimizer")


@pytest.mark.parametrize(
    "row",
    [
        "init=lora, evaluate.unsafe_code=true",
        "init=lora, +evaluate.unsafe_code=true",
        "init=lora, 'evaluate={unsafe_code: true}'",
        "init=lora, 'evaluate.unsafe_code=${force}'",
    ],
)
def test_no_sweep_takes_the_sandbox_away(row: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="typed on the command line, never by a file"):
        reading.load(sweep_of(tmp_path, row))
    typed = ["evaluate.unsafe_code=true"]
    assert reading.load(sweep_of(tmp_path, "init=lora"), None, typed).overrides == typed


def test_no_yaml_takes_the_sandbox_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "conf"
    (own / "experiment").mkdir(parents=True)
    (own / "experiment" / "theirs.yaml").write_text(
        "# @package _global_\nevaluate: {unsafe_code: true}\n"
    )
    words = [f"--config-dir={own}", "experiment=theirs", f"output_root={tmp_path / 'out'}"]
    assert main([*words, "task=tweets", "init=lora"]) == 2
    assert "it stands in a yaml" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


SECRET = "a-secret-word"


@pytest.mark.parametrize(
    "word",
    [
        "wandb.group=${oc.env:THEIR_TOKEN}",
        "wandb.group=x-${oc.env:THEIR_TOKEN,none}",
        "wandb.group=$\\\\{oc.env\\\\:THEIR_TOKEN\\\\}",
        "+task.folder=${oc.env:THEIR_TOKEN}",
    ],
)
def test_a_strangers_sweep_reads_nothing_of_the_environment(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However it is spelled: a record, and W&B, would keep the value."""
    monkeypatch.setenv("THEIR_TOKEN", SECRET)
    words = ", ".join(f'"{part}"' for part in word.split(", "))
    name = sweep_of(tmp_path, "init=lora", f", {words}")
    for verb in ("plan", "sweep", "table"):
        assert main([verb, name, f"output_root={tmp_path}"]) == 2
        said = capsys.readouterr().err
        assert "${oc.env:" in said and "--trust" in said and SECRET not in said
    assert not list(tmp_path.glob("*/*/config.yaml"))


def test_a_variable_that_the_user_names_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By typing it, in a yaml of ours or of their own folder, or with --trust; and a name once
    typed ends with its command."""
    monkeypatch.setenv("THEIR_TOKEN", SECRET)
    monkeypatch.setenv("LORAEXP_DATA", str(tmp_path))
    word = "wandb.group=${oc.env:THEIR_TOKEN}"

    def group(name: str, *typed: str, trust: bool = False) -> str:
        with boundary.command(trust=trust):
            boundary.enclose(Path(name), typed)
            cells = expand(reading.load(name, None, list(typed)))
        return str(cells[0].plain["wandb"]["group"])

    ours = "wandb.group=${oc.env:LORAEXP_DATA}"
    assert group(sweep_of(tmp_path, "init=lora", f', "{ours}"')) == str(tmp_path)
    assert group(sweep_of(tmp_path, "init=lora"), word) == SECRET
    theirs = sweep_of(tmp_path, "init=lora", f', "{word}"')
    assert group(theirs, trust=True) == SECRET
    with pytest.raises(ConfigError, match="THEIR_TOKEN"):
        group(theirs)
    own = tmp_path / "conf"
    (own / "experiment").mkdir(parents=True)
    text = "# @package _global_\nwandb: {group: '${oc.env:THEIR_TOKEN,none}'}\n"
    (own / "experiment" / "mine.yaml").write_text(text)
    search.use([str(own)])
    assert group(theirs) == SECRET
