"""Cross-batch memory: the batch as anchors, the batch and the latest batches as their positives and negatives."""

import copy
import inspect

import pytest
import torch

from dml.losses.contrastive import ContrastiveLoss
from dml.losses.lifted import LiftedLoss
from dml.losses.memory import CrossBatchMemory
from dml.losses.nra import NRALoss
from dml.losses.triplet import TripletLoss
from tests.losses import SMOOTH, Batch, assert_slopes_close, value_and_gradient
from tests.losses.table import PAIRS


def batches(count, size=10):
    for seed in range(count):
        yield tuple(each[:size] for each in Batch((5, 4, 3), 4).make(seed))


@pytest.mark.parametrize("path", ["whole", "blocks"], indirect=True)
@pytest.mark.parametrize("name", PAIRS)
def test_earlier_batches_are_others_without_gradient(name, path):
    make, oracle, options = PAIRS[name]
    loss = CrossBatchMemory(loss=make(**options), size=24, start_step=0, embedding_dim=4).double()
    earlier = []
    for x, labels in batches(5):
        kept = earlier[-24:]  # two batches and most of a third
        others = torch.stack([each for each, _ in kept]) if kept else x[:0]
        of_others = torch.stack([label for _, label in kept]) if kept else labels[:0]

        classes = torch.cat([labels, of_others])

        held = {"held": torch.cat([x, others])} if "held" in inspect.signature(oracle).parameters else {}

        def expected(batch, others=others, classes=classes, held=held):
            return oracle(torch.cat([batch, others]), classes, **options, **held, anchors=10)

        value, gradient = value_and_gradient(loss, x, labels)
        torch.testing.assert_close(value, expected(x), rtol=1e-10, atol=1e-13)
        assert_slopes_close(gradient, expected, x, 1e-7)
        earlier += list(zip(x, labels, strict=True))


@pytest.mark.parametrize("path", ["whole", "blocks"], indirect=True)
@pytest.mark.parametrize("name", PAIRS)
def test_all_as_anchors_is_the_plain_loss(name, path):
    make, _, options = PAIRS[name]
    for x, labels in (batch.make(0) for batch in SMOOTH.values()):
        plain, given = make(**options)(x, labels), make(**options)(x, labels, anchors=len(x))
        torch.testing.assert_close(given, plain, rtol=1e-12, atol=1e-14)


def test_until_the_first_remembered_step_it_is_the_plain_loss():
    loss, plain = CrossBatchMemory(loss=NRALoss(), size=50, start_step=2, embedding_dim=4).double(), NRALoss()
    same = [torch.equal(loss(*batch), plain(*batch)) for batch in batches(5)]
    assert same == [True, True, True, False, False]  # the third is the first that is remembered


def test_a_batch_that_is_larger_than_the_memory():
    loss = CrossBatchMemory(loss=ContrastiveLoss(), size=3, start_step=0, embedding_dim=4).double()
    for x, labels in batches(2):
        loss(x, labels)
        assert sorted(map(tuple, loss.embeddings.tolist())) == sorted(map(tuple, x[-3:].tolist()))


def test_it_goes_on_where_it_was_saved(tmp_path):
    def make():
        return CrossBatchMemory(loss=TripletLoss(mining="hard"), size=24, start_step=1, embedding_dim=4).double()

    whole, first = make(), make()
    given = list(batches(8))
    expected = [whole(*batch).item() for batch in given]
    for batch in given[:4]:
        first(*batch)
    torch.save(first.state_dict(), tmp_path / "state")
    second = make()
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert [second(*batch).item() for batch in given[4:]] == expected[4:]


def test_under_autocast_it_remembers_in_float32():
    loss = CrossBatchMemory(loss=NRALoss(), size=24, start_step=0, embedding_dim=4)
    other = copy.deepcopy(loss)
    for x, labels in batches(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert loss(x.bfloat16(), labels) == other(x.bfloat16().float(), labels)
    assert loss.embeddings.dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "key"),
    [
        (
            {"loss": LiftedLoss()},
            r"loss\.loss=LiftedLoss is not possible: it must be a loss whose forward takes anchors",
        ),
        ({"size": 0}, r"loss\.size=0"),
        ({"start_step": -1}, r"loss\.start_step=-1"),
    ],
)
def test_what_is_not_possible_is_refused(given, key):
    with pytest.raises(ValueError, match=key):
        CrossBatchMemory(**{"loss": NRALoss(), "embedding_dim": 4, **given})


def test_embeddings_of_another_dimension_are_refused():
    with pytest.raises(ValueError, match=r"loss\.embedding_dim=4 is not possible: it must be the embeddings' 5"):
        CrossBatchMemory(loss=NRALoss(), embedding_dim=4)(torch.randn(4, 5), torch.tensor([0, 0, 1, 1]))
