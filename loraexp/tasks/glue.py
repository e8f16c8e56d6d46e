"""GLUE's tasks, in the form that the model's kind needs: classes from an encoder's head, or
text."""

from __future__ import annotations

from loraexp.data.tables import label_parser
from loraexp.run.task import Given, Task, of_keys
from loraexp.tasks import glue_text
from loraexp.tasks.classification import Classification
from loraexp.tasks.originals import GlueKeys, glue_rows


@of_keys(GlueKeys, kinds=frozenset({"encoder", "seq2seq", "causal"}))
def glue(keys: GlueKeys, given: Given) -> Task:
    """One GLUE task, e.g. CoLA's row `gj04  1    Our friends won't buy this analysis, let alone …`
    → acceptable.

    Wang et al. 2019, "GLUE". `data_dir` holds the original files, as `DIR/CoLA/train.tsv` or
    `DIR/train.tsv`; without it `source` is loaded from the hub. `eval_data_dir` is where the dev
    files are, when elsewhere. Where copies of the train file lack rows (MRPC), `full_train` minus
    the id pairs in `full_train_without` is read instead, if both are there. One of the dev splits
    is enough in a local folder; the notes say which are missing.

    A model of text has the same rows as prompts and answers (`loraexp.tasks.glue_text`): `protocol`
    then is the one that selects, under LoRA-GA's prompt and scoring (whole numbers compared for
    STS-B), or the name of a paper's.

    Raises: SourceError where a file or the hub's copy is missing; ValueError naming file and line
    of a malformed row.
    """
    if given.kind != "encoder":
        return glue_text.of_text(glue_text.as_text(keys), given)
    return Classification(
        keys, *glue_rows(keys, label_parser(keys.problem, keys.label_names)), given
    )
