"""Faults of earlier recommenders by semantic IDs, and input to be refused, each by its tests.

They stand beside what they test; here they are named, so that none is lost.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from fading_decoder import ANY
from named_tests import missing_tests

from recipe_jax.item_beam_search import search_items
from recipe_jax.prefix_index import build_prefix_index

FAULTS = {
    "colliding ids, of which the last item silently wins": (
        "test_semantic_ids.py::test_no_item_wins_silently_over_another_with_the_same_id",
        "test_semantic_ids.py::test_digits_make_all_ids_different_and_as_small_as_can_be",
        "test_prefix_index.py::test_an_id_of_two_items_and_codes_beyond_their_level_are_refused",
    ),
    "constrained generation that is a regular expression afterwards": (
        "test_item_beam_search.py::test_any_model_names_items_of_any_catalogue_and_nothing_else",
        "test_item_beam_search.py::test_as_many_results_as_are_asked_for_whatever_the_model_prefers",
    ),
    "ten results asked for, one given": (
        "test_item_beam_search.py::test_as_many_results_as_are_asked_for_whatever_the_model_prefers",
        "experiments/test_generative_command.py::"
        "test_as_many_items_are_recommended_as_are_asked_for",
        "experiments/test_tune_command.py::test_a_history_brings_the_next_item",
    ),
    "training and validation split by example, so that items leak": (
        "data/test_id_tasks.py::test_no_item_has_examples_in_two_parts",
    ),
    "weight decay that moves frozen embeddings": (
        "training/test_optimizers.py::"
        "test_only_some_rows_of_a_table_move_however_much_the_optimizer_decays",
        "models/test_new_tokens.py::test_weight_decay_never_moves_what_is_frozen",
        "experiments/test_tune_command.py::test_with_adapters_not_a_bit_of_the_known_words_moves",
    ),
    "usage and perplexity of a batch": (
        "quantizers/test_statistics.py::"
        "test_known_fault_usage_and_perplexity_of_a_batch_are_not_those_of_the_catalogue",
        "quantizers/test_fitting.py::test_every_epoch_has_the_statistics_of_the_whole_catalogue",
    ),
    "k-means hidden in the forward pass and run again on resuming": (
        "quantizers/test_fitting.py::"
        "test_killed_it_resumes_bit_identically_and_never_runs_kmeans_again",
    ),
    "a trie that admits ids that are none": (
        "test_prefix_index.py::test_it_leads_to_every_id_and_to_nothing_else",
        "test_item_beam_search.py::test_any_model_names_items_of_any_catalogue_and_nothing_else",
    ),
    "ties broken by the number of an item": (
        "test_metrics.py::test_a_constant_scorer_ranks_everything_in_the_middle_whatever_the_item",
        "test_metrics.py::test_ranks_do_not_change_under_monotone_transforms_or_renumbered_items",
    ),
}

REFUSED = {
    "an empty index": ("test_item_beam_search.py::test_what_does_not_fit_is_refused",),
    "more results than items": (
        "experiments/test_generative_command.py::test_histories_that_cannot_be_answered_are_refused",
        "experiments/test_tune_command.py::test_a_question_that_cannot_be_asked_is_refused",
    ),
    "an unknown item in a history": (
        "experiments/test_generative_command.py::test_histories_that_cannot_be_answered_are_refused",
    ),
    "a history longer than the model": (
        "experiments/test_generative_command.py::test_histories_that_cannot_be_answered_are_refused",
        "experiments/test_tune_command.py::test_a_history_brings_the_next_item",
    ),
    "an index of another model": (
        "test_prefix_index.py::test_its_file_is_read_for_the_same_ids_alone",
        "experiments/test_generative_command.py::test_its_folder_knows_the_ids_and_refuses_others",
        "experiments/test_tune_command.py::test_ids_of_others_and_missing_files_are_refused",
    ),
    "vectors that are not finite": (
        "experiments/test_quantize_command.py::test_bad_input_is_one_line_and_no_folder",
        "quantizers/test_fitting.py::test_what_cannot_be_fitted_is_refused_before_a_folder_is_made",
    ),
}


@pytest.mark.parametrize("name", [*FAULTS, *REFUSED])
def test_the_tests_of_a_fault_are_there(name: str):
    assert not missing_tests((FAULTS | REFUSED)[name])


@pytest.mark.parametrize("renormalize", [False, True])
def test_all_beams_are_kept_where_a_default_top_k_would_keep_two(renormalize: bool):
    """Two codes take all but a hundredth of the mass: top-k and top-p after the constraint
    would leave them and what follows them alone, however many beams are asked for."""
    sizes = (60, 3)
    codes = np.array([(a, b) for a in range(60) for b in range(2)])
    params = np.zeros((64, 64), np.float32)
    params[:, :2] = 12.0
    found = search_items(
        ANY,
        params,
        jnp.array([[63]]),
        jnp.array([1]),
        indexes=[build_prefix_index(codes, sizes)],
        level_tokens=(0, 60),
        num_beams=50,
        renormalize=renormalize,
    )
    items = np.asarray(found.items[0])
    assert len(set(items.tolist())) == 50 and (items >= 0).all()
    assert np.isfinite(found.log_probability).all()
