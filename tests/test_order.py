"""The rows of a training step are a function of (seed, step), whatever the number of processes."""

from itertools import islice

import pytest
import torch

from smalti.common.errors import UserError
from smalti.common.history import Change, rows_dealt, write_history
from smalti.common.row_order import RowOrder, Share, batches


def rows_of(order: RowOrder, number: int) -> torch.Tensor:
    return torch.cat([rows for rows, _ in islice(order, number)])


def test_an_epoch_takes_every_row_once_and_the_next_in_another_order():
    rows = rows_of(RowOrder(10, 0, Share(batch_size=5), 0), 4).view(2, 10)
    assert torch.equal(rows.sort(1).values, torch.arange(10).expand(2, 10))
    assert not torch.equal(rows[0], rows[1])


def test_a_batch_may_reach_into_the_next_epoch_and_says_so():
    _, epochs = RowOrder(10, 0, Share(batch_size=8), 0).at(8, 16)
    assert epochs.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]


def test_starting_at_a_step_is_going_on_from_it():
    whole = rows_of(RowOrder(10, 3, Share(batch_size=4), 0), 9)
    assert torch.equal(whole[5 * 4 :], rows_of(RowOrder(10, 3, Share(batch_size=4), 5), 4))


def test_an_epoch_takes_every_row_once_though_the_batch_size_changes_in_it(tmp_path):
    """The place in the order was the step times the batch of now: rows before it were taken again, or never."""
    changes = [Change(step=0, setting="batch_size", before=3, after=2), Change(step=0, setting="lr", before=1, after=2)]
    write_history(tmp_path, 2, changes)
    before = rows_of(RowOrder(10, 0, Share(batch_size=3), 0), 2)
    after = rows_of(RowOrder(10, 0, Share(batch_size=2), 2, rows_dealt(tmp_path, 2, 2)), 2)
    assert torch.equal(torch.cat([before, after]).sort().values, torch.arange(10))


def test_a_run_whose_batch_size_changed_resumes_at_the_place_it_had_come_to(tmp_path):
    write_history(tmp_path, 2, [Change(step=0, setting="batch_size", before=3, after=2)])
    whole = rows_of(RowOrder(10, 0, Share(batch_size=2), 2, rows_dealt(tmp_path, 2, 2)), 6)
    later = rows_of(RowOrder(10, 0, Share(batch_size=2), 5, rows_dealt(tmp_path, 5, 2)), 3)
    assert torch.equal(whole[3 * 2 :], later)


@pytest.mark.parametrize("world, accumulate", [(2, 1), (1, 2), (2, 3)])
def test_processes_and_micro_batches_share_the_same_global_batch(world, accumulate):
    whole = rows_of(RowOrder(50, 0, Share(batch_size=12), 0), 3).view(3, 12).sort(1).values
    shares = [
        rows_of(RowOrder(50, 0, Share(batch_size=12, accumulate=accumulate, rank=rank, world=world), 0), 3 * accumulate)
        for rank in range(world)
    ]
    together = torch.cat([share.view(3, -1) for share in shares], dim=1).sort(1).values
    assert torch.equal(whole, together)


def test_a_batch_that_cannot_be_shared_is_refused_with_one_that_can():
    with pytest.raises(UserError, match="batch_size 10 must divide by 4 processes times 1 micro-batches = 4; 8 would"):
        Share(batch_size=10, world=4)


def test_reading_ahead_in_workers_changes_nothing():
    class Rows(torch.utils.data.Dataset):
        def __getitem__(self, key):
            return key[0]

    def take(workers: int) -> torch.Tensor:
        return torch.cat(list(islice(batches(Rows(), RowOrder(20, 0, Share(batch_size=4), 2), workers), 7)))

    assert torch.equal(take(0), take(2))
