"""Training sets and groups of ranks of every size: who computes what, without computing it."""

from __future__ import annotations

import pytest

from components.core.distributed.process_group import ProcessGroup
from components.core.encoder.packed.packing import split_evenly
from components.core.encoder.training.phases import plan_phases, plan_single_phase
from components.finetune.component import FinetuneConfig
from components.finetune.data.batch import Batch
from components.finetune.data.training_data import batch_size, batches, steps
from components.finetune.gradients.reduction import select_local_queries
from components.finetune.schedule import interval, learning_rate

SIZES = range(1, 601)
RANKS = (1, 2, 4, 8)


def batch_of(queries: int) -> Batch:
    """Neighbours share passages, lengths differ."""
    passages = [[1] * (5 + 7 * number % 60) for number in range(queries + 4)]
    slots = [[number, number + 1, number + 2, number + 3, number + 4] for number in range(queries)]
    return Batch([[1] * (3 + number % 9) for number in range(queries)], passages, slots, [{own[0]} for own in slots])


@pytest.mark.parametrize("given", [128, 100, 7])
def test_every_size_of_a_training_set_is_seen_whole_in_every_epoch(given: int) -> None:
    """Also those that the recipe's own batch rule cannot divide: 288 of the sizes from 136 to 511 crash it."""
    for examples in SIZES:
        size = batch_size(given, examples)
        order = list(batches(examples, size, 2, seed=1))
        assert len(order) == steps(examples, size, 2)
        for epoch in range(2):
            assert sorted(row for number, rows in order if number == epoch for row in rows) == list(range(examples))
        config = FinetuneConfig()
        rates = [learning_rate(step, len(order), config) for step in range(len(order))]
        assert all(0 < rate <= config.learning_rate for rate in rates)
        every = interval(config.checkpoint_every_steps, len(order), config)
        assert every is not None and len(order) // every >= min(3, len(order))


def test_every_query_and_text_of_any_batch_belongs_to_one_rank() -> None:
    sizes = {len(rows) for examples in SIZES for _, rows in batches(examples, batch_size(128, examples), 1, seed=1)}
    assert {1, 16, 37, 64} <= sizes
    for queries in sorted(sizes):
        batch = batch_of(queries)
        lengths = [len(text) for text in batch.texts]
        for count in RANKS:
            shares = [list(select_local_queries(batch, ProcessGroup(rank, count))) for rank in range(count)]
            assert sorted(query for own in shares for query in own) == list(range(queries))
            texts = split_evenly(lengths, count)
            assert sorted(row for own in texts for row in own) == list(range(len(lengths)))
            loads = [sum(lengths[row] for row in own) for own in texts]
            assert max(loads) - min(loads) <= max(lengths)


def test_ranks_get_equal_work_of_a_full_batch() -> None:
    batch = batch_of(128)
    for count in RANKS:
        loads = []
        for rank in range(count):
            rows = {
                row for query in select_local_queries(batch, ProcessGroup(rank, count)) for row in batch.groups[query]
            }
            loads.append(sum(len(batch.texts[row]) for row in rows))
        assert max(loads) < 1.1 * sum(loads) / count


@pytest.mark.parametrize("capacity", [300, 2000, 100_000])
def test_bins_of_any_batch_are_computed_by_one_rank_each(capacity: int) -> None:
    """Every query in one phase, every phase and every bin whole, ranks about equally busy."""
    for queries in (1, 2, 7, 37, 128):
        batch = batch_of(queries)
        lengths = [len(text) for text in batch.texts]
        for count in RANKS:
            limits = {"capacity": capacity, "layers": 4, "num_ranks": count}
            phases = plan_phases(batch.groups, lengths, **limits)
            assert sorted(query for phase in phases for query in phase.groups) == list(range(queries))
            for phase in phases:
                assert set(phase.rows) == {row for query in phase.groups for row in batch.groups[query]}
                assert len(phase.rows) == len(set(phase.rows))
            whole = plan_single_phase(batch.groups, lengths, **limits)
            assert sorted(whole.rows) == list(range(len(lengths)))
            for parts in ([phase.rows for phase in phases] if len(phases) > 1 else phases[0].bins, whole.bins):
                assert len(parts) % count == 0 or len(parts) < count or len(parts) == queries
                loads = [sum(lengths[row] for row in rows) for rows in parts]
                busy = [sum(loads[place] for place in own) for own in split_evenly(loads, count)]
                if queries == 128:
                    assert max(busy) < 1.1 * sum(busy) / count


def test_bins_do_not_depend_on_the_number_of_ranks_that_can_share_them() -> None:
    """So two GPUs round as one does."""
    batch = Batch(
        [[1] * (16 + number % 24) for number in range(128)],
        [[1] * (60 + 37 * number % 400) for number in range(640)],
        [list(range(5 * number, 5 * number + 5)) for number in range(128)],
        [{5 * number} for number in range(128)],
    )
    lengths = [len(text) for text in batch.texts]
    alone = plan_phases(batch.groups, lengths, capacity=24576, layers=16)
    assert len(alone) == 8
    for count in (2, 4, 8):
        assert plan_phases(batch.groups, lengths, capacity=24576, layers=16, num_ranks=count) == alone
