"""The layout of a sample: every grid, rank and hierarchy is a value that all other code reads."""

import json

import pytest
import torch

from smalti.common.layout import Grid, Layout, in_format_1, of_format_1
from smalti.prior.rotary import ROTARY_BASE, rotary_angles

LAYOUTS = {
    "an image": Layout.of(7, 7, factors=(512,)),
    "four codes a place": Layout.of(8, 8, depth=4, factors=(512,)),
    "VQ-VAE-2": Layout(grids=(Grid(shape=(32, 32), factors=(512,)), Grid(shape=(64, 64), factors=(512,)))),
    "VAR": Layout(grids=tuple(Grid(shape=(n, n), factors=(4096,)) for n in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))),
    "sound": Layout.of(75, depth=8, factors=(1024,)),
    "moving pictures": Layout.of(5, 16, 16, factors=(8, 8, 8, 5, 5, 5)),
    "a KL autoencoder": Layout.of(32, 32, depth=4),
    "one vector": Layout.of(1, depth=16),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_join_is_the_inverse_of_split(layout):
    flat = torch.randint(0, 5, (2, layout.length))
    assert torch.equal(layout.join(layout.split(flat)), flat)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_place_has_its_coordinates(layout):
    assert layout.coordinates().shape == (layout.places, len(layout.grids[0].shape))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_number_is_of_the_codebook_of_its_grid_and_depth(layout):
    of, first = layout.split(layout.codebook_of()[None]), 0
    assert len(layout.codebook_names) == layout.codebooks
    for grid, found in zip(layout.grids, of, strict=True):
        expected = torch.arange(first, first + grid.depth).repeat(grid.places)
        assert torch.equal(found.flatten(), expected)
        first += grid.depth


def test_codebooks_are_named_by_what_tells_them_apart():
    two = Layout(grids=(Grid(shape=(1, 1), depth=2, factors=(4,)), Grid(shape=(2, 2), depth=2, factors=(4,))))
    assert two.codebook_names[1:3] == ("grid 1 x 1, depth 2", "grid 2 x 2, depth 1")
    assert LAYOUTS["an image"].codebook_names == ("",) and LAYOUTS["sound"].codebook_names[7] == "depth 8"


def test_a_grid_of_vectors_has_its_channels_last_and_one_of_codes_has_none():
    assert LAYOUTS["one vector"].split(torch.zeros(2, 16))[0].shape == (2, 1, 16)
    assert LAYOUTS["an image"].split(torch.zeros(2, 49))[0].shape == (2, 7, 7)


def test_places_of_an_image_are_its_rows_and_columns_counted_from_one():
    places = Layout.of(2, 3, factors=(4,)).coordinates()
    assert places.tolist() == [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]


def test_a_coarse_place_lies_in_the_middle_of_the_fine_ones_below_it():
    coarse, *fine = Layout(grids=(Grid(shape=(1, 1), factors=(4,)), Grid(shape=(2, 2), factors=(4,)))).coordinates()
    assert torch.equal(coarse, torch.stack(fine).mean(0))


def test_the_mean_over_a_place_is_of_its_own_numbers():
    layout = Layout(grids=(Grid(shape=(1,), depth=2, factors=(4,)), Grid(shape=(3,), depth=2, factors=(4,))))
    coarse, fine = layout.by_place(torch.arange(8.0))
    assert coarse.tolist() == [0.5] and fine.tolist() == [2.5, 4.5, 6.5]


@pytest.mark.parametrize("head_dim", [16, 64])
def test_rotary_angles_of_an_image_turn_half_of_the_pairs_by_row_and_half_by_column(head_dim):
    """The angles equal those of earlier versions bit for bit, so old weights keep their meaning."""
    h, w, pairs = 5, 7, head_dim // 4
    speed = ROTARY_BASE ** (-torch.arange(pairs).double() / pairs)
    row, column = torch.meshgrid(torch.arange(h) + 1.0, torch.arange(w) + 1.0, indexing="ij")
    expected = [(axis.flatten()[:, None].double() * speed) for axis in (row, column)]
    found = rotary_angles(Layout.of(h, w, factors=(4,)), head_dim)
    assert torch.equal(found[1:], torch.cat(expected, 1).float()) and not found[0].any()


def test_what_format_1_said_of_a_grid_is_read_as_a_layout():
    said = {"codebook_size": 12, "factors": [4, 3], "grid": [2, 5], "code_depth": 2}
    read = Layout.model_validate_json(json.dumps(of_format_1({**said, "views": 1})["layout"]))
    assert read == Layout.of(2, 5, depth=2, factors=(4, 3)) and in_format_1(read) == said


@pytest.mark.parametrize(
    ("grids", "told"),
    [
        ((Grid(shape=(2,), factors=(4,)), Grid(shape=(2, 2), factors=(4,))), "grids must have as many axes"),
        ((Grid(shape=(2,), factors=(4,)), Grid(shape=(2,), depth=3)), "all hold codes or all hold vectors"),
        ((Grid(shape=(2**20, 2**10), factors=(4,)),), "numbers a sample, more than"),
        ((Grid(shape=(2,), factors=(2**13, 2**13)),), "must make at most 16,777,216 codes, got 67,108,864"),
        ((Grid(shape=(2,), depth=2**7, factors=(2**24,)),), "at most 1,073,741,824 codes to count, got 2,147,483,648"),
    ],
)
def test_grids_that_do_not_go_together_are_refused(grids, told):
    with pytest.raises(ValueError, match=told):
        Layout(grids=grids)


def test_a_size_that_grids_do_not_share_is_not_made_up():
    mixed = Layout(grids=(Grid(shape=(2,), factors=(4,)), Grid(shape=(2,), depth=2, factors=(8,))))
    for ask in ("codebook_size", "depth", "factors"):
        with pytest.raises(ValueError, match=r"one .* is wanted, and the grids are 2 codes of 4 [+] 2 x 2 codes of 8"):
            getattr(mixed, ask)


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        (Layout.of(4, 4, factors=(128,)), Layout.of(4, 4, factors=(16, 8)), "factors [128] and [16, 8]"),
        (Layout.of(4, 4, depth=2, factors=(8,)), Layout.of(4, 4, 2, factors=(8,)), "shape [4, 4] and [4, 4, 2]"),
        (LAYOUTS["VQ-VAE-2"], LAYOUTS["VAR"], "2 and 10 grids"),
    ],
)
def test_what_two_layouts_differ_in_is_said_where_their_words_are_alike(ours, theirs, told):
    """16 x 8 digits against 128 codes read `4 x 4 codes of 128` on both sides."""
    assert told in ours.differences(theirs)


def test_a_layout_says_itself_in_words():
    assert [str(layout) for layout in LAYOUTS.values()][:2] == ["7 x 7 codes of 512", "8 x 8 x 4 codes of 512"]
    assert str(LAYOUTS["one vector"]) == "1 vector of 16"
