"""What comes in from outside (weights, tokenizers, labels, data, a hub) and does not match:
refused, mended or warned of, each with its right value, and the test that has it.

One principle decides them all: the record says what was loaded; whatever does not match is one line
and a refusal, or a warning that the record keeps.
"""

from __future__ import annotations

import ast
import functools
from typing import Literal, NamedTuple

import pytest

from tests.support.helpers import REPOSITORY

Verdict = Literal["refused", "mended", "warned"]


class Edge(NamedTuple):
    number: int
    comes: str  # what comes in
    verdict: Verdict
    value: str  # what is right
    tests: tuple[str, ...]  # file::test, below tests/


TABLE = [
    Edge(
        1,
        "a finished run is scored again, under a limit",
        "mended",
        "its metrics stay; the re-score is an evaluation of its own with all that differs",
        (
            "finished/test_rescore.py::test_a_rescore_stands_beside_the_metrics_with_what_made_it_differ",
        ),
    ),
    Edge(
        2,
        "weights that match nothing: a prefix, layers lacking, layers too many, other sizes",
        "refused",
        "one line with the keys and the likely cause, for encoders, decoders and both",
        (
            "models/test_foreign_weights.py::test_a_checkpoint_of_a_wrapped_model_is_refused",
            "models/test_foreign_weights.py::test_a_text_model_is_refused_alike",
            "models/test_foreign_weights.py::test_a_checkpoint_that_lacks_layers_or_has_more_is_refused",
        ),
    ),
    Edge(
        3,
        "a body that lacks a pooler or a head",
        "mended",
        "what is drawn trains and is saved: PEFT on a base of another seed is the same function",
        (
            "models/test_foreign_weights.py::test_a_masked_language_model_has_no_pooler_and_that_is_said",
            "models/test_foreign_weights.py::test_a_drawn_pooler_trains_is_saved_and_verifies_on_a_fresh_base",
            "models/test_families.py::test_an_adapter_has_all_that_a_base_of_another_seed_lacks",
        ),
    ),
    Edge(
        4,
        "a folder without tokenizer files",
        "refused",
        "it knows no word",
        ("models/test_reach.py::test_a_folder_without_a_tokenizer_is_refused",),
    ),
    Edge(
        4,
        "text of which most is unknown to the tokenizer",
        "refused",
        "above 50 % of the tokens, with the share",
        (
            "data/test_unknown.py::test_a_data_set_in_an_unknown_script_is_refused",
            "data/test_unknown.py::test_prompts_in_an_unknown_script_are_refused",
        ),
    ),
    Edge(
        4,
        "text of which some is unknown",
        "warned",
        "above 1 %; the share is in the record in any case, 0 for bytes",
        (
            "data/test_unknown.py::test_some_unknown_tokens_are_counted_and_recorded",
            "data/test_unknown.py::test_bytes_are_never_unknown",
        ),
    ),
    Edge(
        4,
        "an export is loaded by a stranger",
        "mended",
        "tokenizer, generation configuration, labels by number and by name are in it",
        (
            "models/test_tied.py::test_a_run_on_a_shared_output_layer_verifies_and_exports",
            "models/test_tied.py::test_training_every_weight_leaves_shared_ones_shared",
            "finished/test_export.py::test_an_adapter_loads_by_the_lines_of_its_card",
            "finished/test_export.py::test_a_merged_checkpoint_has_its_labels_both_ways",
        ),
    ),
    Edge(
        5,
        "names of classes that look like indices, or in another order",
        "mended",
        "names win: 80 rows of each of five; a hub's own names are mapped",
        (
            "tasks/test_labels.py::test_names_that_look_like_indices_are_names",
            "tasks/test_labels.py::test_classes_of_a_set_in_another_order_are_read_by_name",
            "tasks/test_labels.py::test_names_without_quotes_are_names_and_the_record_counts_rows_by_them",
        ),
    ),
    Edge(
        5,
        "labels outside the classes, such as -1",
        "refused",
        "the row and the classes there are",
        ("tasks/test_labels.py::test_a_label_outside_the_classes_is_refused",),
    ),
    Edge(
        6,
        "a tokenizer that ends every text",
        "mended",
        "a prompt has the same tokens in training and in generation, under every protocol",
        (
            "tasks/test_prompt_tokens.py::test_training_and_generation_read_the_same_tokens",
            "tasks/test_prompt_tokens.py::test_an_encoder_decoder_reads_its_prompt_with_its_end",
        ),
    ),
    Edge(
        7,
        "an output layer that shares its weight, as a target",
        "mended",
        "untied and said; alone, through PEFT, merged and read again one function (1e-6)",
        (
            "models/test_tied.py::test_a_shared_output_layer_is_one_function_everywhere",
            "models/test_tied.py::test_a_run_on_a_shared_output_layer_verifies_and_exports",
        ),
    ),
    Edge(
        8,
        "data, base weights or one's own code changed under a run",
        "refused",
        "finished, going on, verify, export, eval and align say which file, and what to type",
        (
            "finished/test_rescore.py::test_a_changed_base_is_seen_by_every_command",
            "finished/test_rescore.py::test_changed_data_are_seen_when_finished_and_when_going_on",
            "finished/test_rescore.py::test_changed_code_of_an_own_initializer_is_seen",
        ),
    ),
    Edge(
        9,
        "another commit in the cache, a revision that moves, a folder of the same name",
        "refused",
        "what is read has the recorded commit; two seeds see one",
        (
            "data/test_sets.py::test_another_commit_in_the_cache_is_never_read_in_its_place",
            "data/test_sets.py::test_a_null_revision_is_one_commit_that_the_name_says",
            "data/test_sets.py::test_a_folder_of_the_same_name_is_not_taken_for_the_hubs",
            "cli/test_hub_runs.py::test_two_seeds_never_see_two_commits",
            "cli/test_hub_runs.py::test_show_reads_the_commit_that_a_run_here_reads",
        ),
    ),
    Edge(
        10,
        "model.dtype=bfloat16 on an encoder",
        "mended",
        "head and factors are float32, and what asks for float32 gets it (verify below 1e-5)",
        ("models/test_foreign_weights.py::test_an_encoder_in_bf16_trains_and_verifies_in_float32",),
    ),
    Edge(
        11,
        "a checkpoint with a head of its own",
        "mended",
        "model.head=keep keeps it, new draws it over the same body; either is said",
        ("models/test_foreign_weights.py::test_a_head_is_kept_or_drawn_and_either_is_said",),
    ),
    Edge(
        12,
        "rows of public sets without a text",
        "mended",
        "skipped and counted; any other bad row stops",
        (
            "data/test_sets.py::test_training_rows_are_read_and_those_without_text_counted",
            "tasks/test_text_tasks.py::test_a_training_row_without_text_is_skipped_and_counted",
        ),
    ),
    Edge(
        13,
        "training rows and benchmarks, each from a folder or the hub",
        "mended",
        "all four combinations in one command, for every text task",
        (
            "cli/test_places_of_data.py::test_each_comes_from_where_it_is_said_to",
            "cli/test_hub_runs.py::test_commonsense_is_trained_and_scored_from_the_hub_in_one_command",
        ),
    ),
    Edge(
        14,
        "a model or data set that the hub does not give",
        "refused",
        "the client's reason, and the remedy that fits it",
        (
            "machine/test_repository.py::test_a_failure_keeps_the_reason_and_names_the_remedy",
            "machine/test_repository.py::test_a_token_that_may_not_read_is_told_apart_from_none",
            "machine/test_repository.py::test_a_repository_without_weights_says_what_is_there",
            "data/test_set_failures.py::test_a_failure_keeps_the_reason_and_names_the_remedy",
        ),
    ),
    Edge(
        15,
        "a hub that dies in the middle",
        "refused",
        "one line with the repository, and the same command goes on",
        (
            "cli/test_hub_runs.py::test_a_hub_that_dies_is_one_line_and_the_same_command_goes_on",
            "machine/test_repository.py::test_a_download_that_breaks_off_goes_on",
        ),
    ),
    Edge(
        16,
        "a hub that is slow or busy",
        "mended",
        "asked again, waited for, the download shown",
        (
            "machine/test_repository.py::test_a_slow_hub_is_waited_for",
            "machine/test_repository.py::test_a_busy_hub_is_asked_again",
            "machine/test_repository.py::test_a_download_shows_how_much_of_how_much",
            "cli/test_hub_runs.py::test_nothing_but_our_own_lines_is_printed",
        ),
    ),
    Edge(
        17,
        "a grid of four on a cold cache, then warm, offline and finished",
        "mended",
        "each file once, at most 24 requests, then none; only safetensors",
        (
            "cli/test_hub_runs.py::test_a_grid_asks_the_hub_once",
            "machine/test_repository.py::test_every_family_loads_and_only_its_safetensors_are_fetched",
            "machine/test_repository.py::test_two_processes_on_one_cold_cache",
            "data/test_sets.py::test_two_processes_prepare_one_set",
        ),
    ),
    Edge(
        18,
        "rows or token types beyond the model, a rank beyond a layer, no architecture",
        "refused",
        "before any weight is loaded or calibration begins",
        (
            "models/test_reach.py::test_rows_and_token_types_beyond_the_model_are_refused",
            "models/test_reach.py::test_a_run_says_so_before_it_loads_weights",
            "models/test_reach.py::test_a_side_of_an_encoder_decoder_beyond_its_positions_is_refused",
            "models/test_reach.py::test_positions_of_an_architecture",
            "models/test_text_models.py::test_a_tokenizer_without_a_pad_token_and_one_too_large",
            "config/test_config.py::test_a_bad_command_line_is_one_line_and_status_2",
        ),
    ),
    Edge(
        18,
        "keys shared by two inputs (DeBERTa), an input that is null, a task of another kind",
        "mended",
        "a gradient of every layer; a row like any other; the form that the model's kind needs",
        (
            "models/test_foreign_weights.py::test_shared_keys_of_deberta_have_a_gradient",
            "tasks/test_text_tasks.py::test_recipes_put_rows_as_the_papers_do",
            "tasks/test_text_tasks.py::test_a_glue_task_takes_the_form_of_the_models_kind",
            "sweep/test_computed.py::test_its_runs_are_told_where_and_how",
        ),
    ),
]


@functools.cache
def runs_by_default(file: str) -> frozenset[str]:
    """The tests of a file that are neither slow nor skipped."""
    tree = ast.parse((REPOSITORY / "tests" / file).read_text())
    left_out = ("mark.slow", "mark.skip", "mark.gpu", "mark.xfail")
    return frozenset(
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and not any(word in ast.unparse(mark) for mark in node.decorator_list for word in left_out)
    )


def test_no_number_is_missing() -> None:
    assert sorted({edge.number for edge in TABLE}) == list(range(1, 19))
    assert {edge.verdict for edge in TABLE} == {"refused", "mended", "warned"}


@pytest.mark.parametrize("edge", TABLE, ids=[f"{edge.number} {edge.comes[:40]}" for edge in TABLE])
def test_every_edge_has_its_value_in_a_test_that_runs(edge: Edge) -> None:
    assert edge.comes and edge.value and edge.tests
    for test in edge.tests:
        file, _, name = test.partition("::")
        assert name in runs_by_default(file), test
