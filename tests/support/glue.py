"""GLUE's original files, each with the traps of the real ones."""

from __future__ import annotations

from pathlib import Path

# One file of each original layout, with the traps of the real ones: bare quotes, a byte-order mark,
# U+2028 in a sentence, a last line without its end, more label columns in MNLI's dev files than in
# train.
MNLI = "index\tpromptID\tpairID\tgenre\tp1\tp2\tq1\tq2\tsentence1\tsentence2\tlabel1\t"


MNLI += "{more}gold_label\n"


MNLI_ROW = "{i}\t1\t1e\tfiction\t(\t(\t(\t(\tA man {i}.\tA person {i}.\t{label}\t{more}{label}\n"


HEADERS = {
    "SST-2": "sentence\tlabel\n",
    "MRPC": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n",
    "STS-B": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    ),
    "QNLI": "index\tquestion\tsentence\tlabel\n",
    "RTE": "index\tsentence1\tsentence2\tlabel\n",
}


def row(folder: str, i: int) -> str:
    entails = ["entailment", "not_entailment"][i % 2]
    return {
        "CoLA": f'gj04\t{i % 2}\t{"*" if i % 2 == 0 else ""}\tThe \u2028 "sailor {i} rode.\n',
        "SST-2": f"a charming journey {i} \t{i % 2}\n",
        "MRPC": f'{i % 2}\t{i}\t{i + 1000}\t" He said {i} , " no .\tHe " said {i} .\n',
        "QQP": f'{i}\t{i}\t{i}\tWhat is "{i}?\tWhich is {i}?\t{i % 2}\n',
        "STS-B": (
            f'{i}\tnews\tf\t2012\t{i}\tnone\tnone\tA "plane {i}.\tA plane.\t{i % 6}.250\n'.replace(
                "5.250", "5.000"
            )
        ),
        "QNLI": f"{i}\tWhat came {i}?\tIt came {i}.\t{entails}\n",
        "RTE": f"{i}\tWeapons {i}.\tWeapons.\t{entails}\n",
        "MNLI": MNLI_ROW.format(
            i=i, label=["entailment", "neutral", "contradiction"][i % 3], more=""
        ),
    }[folder]


def write_glue(root: Path, train: int = 40, dev: int = 12) -> Path:
    for folder in ["CoLA", "SST-2", "MRPC", "QQP", "STS-B", "QNLI", "RTE", "MNLI"]:
        (root / folder).mkdir(parents=True)
        header = MNLI.format(more="") if folder == "MNLI" else HEADERS.get(folder, "")
        rows = [row(folder, i) for i in range(train + dev)]
        (root / folder / "train.tsv").write_text(header + "".join(rows[:train]), newline="")
        dev_file = "dev_matched.tsv" if folder == "MNLI" else "dev.tsv"
        (root / folder / dev_file).write_text(
            (header + "".join(rows[train:])).removesuffix("\n"), newline=""
        )
    extra = "label2\tlabel3\tlabel4\tlabel5\t"
    filler = "neutral\t" * 4
    matched = [
        MNLI_ROW.format(i=i, label=["entailment", "neutral"][i % 2], more=filler)
        for i in range(dev)
    ]
    (root / "MNLI" / "dev_matched.tsv").write_text(MNLI.format(more=extra) + "".join(matched))
    return root
