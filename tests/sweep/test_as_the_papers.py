"""What the papers say of their evaluations and adapters is what the cells of their sweeps have."""

from __future__ import annotations

import math
from typing import Any

import pytest

from loraexp.results import provenance
from loraexp.sweep.cells import expand, lookup
from tests.support.thin import loaded, thin

ADAPTERS = "llm_adapters"
LORA_DA = ["table2", "table3", "table5", "table6", "fig2", "fig4"]


def had(name: str, key: str, variant: str | None = None) -> set[Any]:
    """Every value of a key in the cells of a sweep; lists as tuples."""
    values = (lookup(cell.plain, key, None) for cell in expand(thin(loaded(name, variant))))
    return {tuple(value) if isinstance(value, list) else value for value in values}


def read(name: str, variant: str | None = None) -> set[str]:
    columns = loaded(name, variant).columns.values()
    return {str(column.value) for column in columns if column.value and "/" in str(column.value)}


@pytest.mark.parametrize("artifact", LORA_DA)
def test_lora_da_is_scored_in_the_framework_of_llm_adapters(artifact: str) -> None:
    """Appendix I, line 628; trained on its own prompt. The framework has no MATH."""
    name = f"lora_da_{artifact}"
    wanted = (ADAPTERS, "milora") if artifact == "table2" else ADAPTERS
    assert had(name, "task.protocol") == {wanted} and had(name, "task.recipe") == {"lora_da"}
    scored = {value for value in read(name) if value.startswith("gsm8k/")}
    assert scored == (set() if artifact == "table5" else {f"gsm8k/{ADAPTERS}/accuracy"})
    if artifact == "table5":
        return
    own = {value for value in read(name, "script") if value.startswith("gsm8k/")}
    assert own == {"gsm8k/lora_da/accuracy"}
    assert had(name, "task.recipe", "script") == {"lora_da"}


def test_mmlu_is_asked_directly_and_as_released() -> None:
    """Line 328 of LoRA-One: direct prompting; its script shows five examples."""
    columns = loaded("lora_one_table3").columns
    assert columns["mmlu"].value == "mmlu/direct/accuracy"
    assert columns["mmlu_5"].value == "mmlu/lora_one/accuracy"
    cells = expand(thin(loaded("lora_one_table3")))
    runs = {
        column: {cell.row: cell.folder for cell in cells if cell.column == column}
        for column in ("mmlu", "mmlu_5")
    }
    assert runs["mmlu"] == runs["mmlu_5"] and len(runs["mmlu"]) == 3
    assert all(
        lookup(cell.plain, "task.recipe", None) == "lora_one"
        for cell in cells
        if cell.column == "mmlu"
    )


def test_dropout_is_that_of_lora_sbs_tables_7_and_8() -> None:
    for artifact in ("table1", "table3", "table4", "fig2", "fig3", "text_d2"):
        name = f"lora_sb_{artifact}"
        assert had(name, "adapter.dropout") == {0} and loaded(name).settings["adapter.dropout"] == 0
    assert had("lora_sb_table2", "adapter.dropout") == {0.05}
    assert loaded("lora_sb_table2").settings["adapter.dropout"] == 0.05
    by_row = {
        cell.row: (lookup(cell.plain, "adapter.dropout", None), cell)
        for cell in expand(thin(loaded("lora_sb_table5")))
    }
    assert {row: value for row, (value, _) in by_row.items()} == {
        "mistral": 0,
        "gemma": 0,
        "llama": 0.05,
    }
    for row in by_row:
        stated = loaded("lora_sb_table5").stated(row, "overhead")["adapter.dropout"]
        assert stated == by_row[row][0]


@pytest.mark.parametrize("artifact", ["table1", "fig2", "fig3"])
def test_cg_lora_adapts_24_layers_of_roberta_base(artifact: str) -> None:
    """Lines 1153-1156: 24 layers, query and value of 12 blocks."""
    found = loaded(f"cg_lora_{artifact}")
    assert found.settings["model.targets"] == ["query", "value"]
    assert had(f"cg_lora_{artifact}", "model.targets") == {("query", "value")}
    assert 12 * len(found.settings["model.targets"]) == 24


def test_cg_loras_costs_are_those_of_the_24_layers() -> None:
    """Table 3 runs what its lines 1150-1161 state, and says so; MiniLM's variant says what is
    not."""
    costs = loaded("cg_lora_table3")
    assert costs.settings["model.targets"] == ["query", "value"]
    assert provenance.deviations_of_computed(costs) == []
    smaller = provenance.deviations_of_computed(loaded("cg_lora_table3", "cpu"))
    assert "init.samples: 128 instead of 512" in smaller
    assert "model: minilm instead of roberta-base" in smaller


@pytest.mark.parametrize(
    ("variant", "task", "share", "columns", "seeds", "claims"),
    [
        ("learnt", "cola", 721 / 1043, ("cola", "cola_mcc", "cola_ll"), 3, 3),
        ("learnt_mrpc", "mrpc", 279 / 408, ("mrpc", "mrpc_ll"), 5, 2),
    ],
)
def test_cg_loras_small_tables_ask_whether_their_columns_are_learnt(
    variant: str, task: str, share: float, columns: tuple[str, ...], seeds: int, claims: int
) -> None:
    """The same runs by accuracy and likelihood, seeds of which one chooses the rate, and for both
    baselines a control that is above what always the more frequent class has."""
    found = loaded("cg_lora_table1", variant)
    folders: dict[str, set[Any]] = {}
    for cell in expand(found):
        folders.setdefault(cell.column, set()).add((cell.row, cell.folder))
        assert lookup(cell.plain, "task.metric") == "log_likelihood"
    assert tuple(folders) == columns
    assert found.grid["seed"] == list(range(seeds)) and found.select.judges == {"seed": [0]}
    assert all(folders[column] == folders[task] for column in columns)
    assert len(folders[task]) == 6 * 3
    alone = share * math.log(share) + (1 - share) * math.log(1 - share)
    for row in ("full", "rslora"):
        (control,) = [c for c in found.claims if c.value == f"{row}/{task}_ll" and not c.minus]
        assert control.above is not None and alone + 0.02 < control.above < 0
    own = [one.text for one in loaded("cg_lora_table1").claims if one.value.endswith(f"/{task}")]
    assert [claim.text for claim in found.claims[: len(own)]] == own and len(own) == claims
