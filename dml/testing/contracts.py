"""What a sampler, a backbone, an embedder, a source and a loss promise (docs/own_parts.md), one test each promise.

class TestMine(SamplerContract):
    def build(self, **given):
        return MySampler(size=12, **given)
"""

import copy
import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dml.data.dataset import Records, Source


class SamplerContract:
    """Of batch samplers. `labels` may be replaced by others, [N] whole numbers from 0."""

    labels = np.repeat(np.arange(8), 9)
    world_sizes: tuple[int, ...] = (1, 2, 3)

    def build(self, **given: Any) -> Any:
        """The sampler, with labels, seed, rank and world_size as given."""
        raise NotImplementedError

    def _made(self, seed: int = 3, rank: int = 0, world_size: int = 1) -> Any:
        return self.build(labels=self.labels, seed=seed, rank=rank, world_size=world_size)

    def test_an_epoch_has_the_batches_that_it_says(self) -> None:
        sampler = self._made()
        batches = list(sampler)
        assert len(batches) == len(sampler) >= 1, (len(batches), len(sampler))
        for batch in batches:
            assert isinstance(batch, list) and batch, f"a batch is a list of indices, not {batch!r}"
            assert all(0 <= int(i) == i < len(self.labels) for i in batch), f"indices out of range: {batch}"

    def test_batches_depend_on_seed_and_epoch_alone(self) -> None:
        drawn = []
        for state in (0, 1):
            torch.manual_seed(state)
            np.random.seed(state)
            sampler = self._made()
            sampler.set_epoch(4)
            drawn.append(list(sampler))
        assert drawn[0] == drawn[1], "batches changed with the global random state"

    def test_epochs_differ_and_can_be_chosen_again(self) -> None:
        sampler = self._made()
        epochs = []
        for epoch in (0, 1, 0):
            sampler.set_epoch(epoch)
            epochs.append(list(sampler))
        assert epochs[0] != epochs[1], "two epochs have the same batches"
        assert epochs[0] == epochs[2], "an epoch that is chosen again has other batches"

    def test_ranks_share_the_batch_of_one_process(self) -> None:
        for world_size in self.world_sizes:
            ranks = [list(self._made(rank=rank, world_size=world_size)) for rank in range(world_size)]
            together = [[i for part in parts for i in part] for parts in zip(*ranks, strict=True)]
            assert together == list(self._made()), f"{world_size} processes draw another batch than one"
            assert all(part for parts in ranks for part in parts), "a process has no image of a batch"

    def test_position_counts_the_batches_handed_out(self) -> None:
        sampler = self._made()
        sampler.set_epoch(2)
        assert (sampler.epoch, sampler.position) == (2, 0)
        for number, _ in enumerate(sampler):
            assert sampler.position == number + 1, "position counts a batch before it is handed out"

    def test_a_state_continues_after_its_position(self) -> None:
        old = self._made()
        old.set_epoch(5)
        batches = list(old)
        for done in {0, 1, len(batches) - 1}:
            # The data module puts epoch and position of the batches trained on into the state.
            state = {**pickle.loads(pickle.dumps(old.state_dict())), "epoch": 5, "position": done}
            new = self._made()
            new.load_state_dict(state)
            new.set_epoch(5)  # of the current epoch: keeps the position
            assert list(new) == batches[done:], f"not the rest of the epoch after {done} batches"


class BackboneContract:
    """Of networks from images to features. `size` is the side of the images."""

    size = 32

    def build(self) -> nn.Module:
        """The backbone."""
        raise NotImplementedError

    def _images(self, n: int) -> Tensor:
        return torch.rand(n, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))

    def test_features_are_one_row_an_image(self) -> None:
        model = self.build().eval()
        with torch.no_grad():
            features = model(self._images(3))
        assert features.ndim == 2 and len(features) == 3, f"features are [B, C], not {list(features.shape)}"
        assert features.is_floating_point() and bool(features.isfinite().all())
        width = getattr(model, "head_hidden_size", features.shape[1])  # else embedder.features says it
        assert features.shape[1] == width, f"head_hidden_size={width}, and {features.shape[1]} features"

    def test_an_images_features_do_not_depend_on_the_others(self) -> None:
        model = self.build().eval()
        images = self._images(3)
        with torch.no_grad():
            torch.testing.assert_close(model(images)[1:2], model(images[1:2]), rtol=1e-4, atol=1e-5)

    def test_every_weight_that_learns_gets_a_gradient(self) -> None:
        model = self.build().train()
        model(self._images(4)).square().sum().backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, f"without a gradient, which several processes wait for: {without}"

    def test_a_state_dict_is_all_that_it_needs(self) -> None:
        first, second = self.build(), self.build()
        for parameter in first.parameters():
            parameter.data.add_(0.01)
        second.load_state_dict(first.state_dict())
        with torch.no_grad():
            assert torch.equal(first.eval()(self._images(2)), second.eval()(self._images(2)))

    def test_a_copy_is_the_same_network(self) -> None:
        model = self.build().eval()
        with torch.no_grad():
            assert torch.equal(copy.deepcopy(model)(self._images(2)), model(self._images(2)))


class EmbedderContract(BackboneContract):
    """Of networks from stored images, uint8 in 0 .. 255 or floats in [0, 1], to embeddings [B, dim]."""

    dim = 4

    def test_embeddings_have_the_dimension(self) -> None:
        with torch.no_grad():
            model = self.build().eval()
            columns = model(self._images(3))
            embeddings = model.join(columns) if hasattr(model, "join") else columns  # type: ignore[operator]
        width = sum(getattr(model, "groups", (self.dim,)))
        assert list(columns.shape) == [3, width], f"columns are [B, {width}] by its groups, not {list(columns.shape)}"
        assert list(embeddings.shape) == [3, self.dim], f"embeddings are [B, {self.dim}], not {list(embeddings.shape)}"

    def test_uint8_and_floats_are_the_same_images(self) -> None:
        model, images = self.build().eval(), (self._images(3) * 255).to(torch.uint8)
        with torch.no_grad():
            torch.testing.assert_close(model(images), model(images / 255))


class SourceContract:
    """Of functions that give a `Source`."""

    def build(self) -> Source:
        """The source."""
        raise NotImplementedError

    def test_parts_are_records_with_sound_labels(self) -> None:
        source = self.build()
        for part in (source.train, source.test, source.gallery):
            if part is None:
                continue
            assert isinstance(part, Records)
            assert part.labels.dtype == np.int64, f"labels are int64, not {part.labels.dtype}"
            assert set(part.labels.tolist()) == set(range(part.num_classes)), "every class that has a name has an image"
            if isinstance(part.images, np.ndarray):
                assert part.images.dtype == np.uint8 and part.images.ndim in (3, 4), "images are uint8 [N, H, W(, 3)]"

    def test_two_calls_give_the_same(self) -> None:
        first, second = self.build(), self.build()
        for part, other in ((first.train, second.train), (first.test, second.test)):
            assert np.array_equal(part.labels, other.labels) and part.class_names == other.class_names
            assert all(np.array_equal(a, b) for a, b in zip(part.images, other.images, strict=True))

    def test_training_and_test_classes_are_told_apart(self) -> None:
        source = self.build()
        common = set(source.train.class_names) & set(source.test.class_names)
        assert bool(common) != source.class_disjoint, f"class_disjoint={source.class_disjoint}, in common: {common}"


class LossContract:
    """Of losses, without an oracle; tests/losses/conftest.py of the repository holds ours to more."""

    dim = 5
    sizes: tuple[int, ...] = (4, 3, 3, 2)

    def build(self) -> nn.Module:
        """The loss, of `dim` embeddings and `len(sizes)` classes if it has weights of its own."""
        raise NotImplementedError

    def _batch(self) -> tuple[Tensor, Tensor]:
        labels = torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes))
        return torch.randn(len(labels), self.dim, generator=torch.Generator().manual_seed(0)), labels

    def test_it_is_a_number_with_a_gradient(self) -> None:
        embeddings, labels = self._batch()
        embeddings.requires_grad_()
        loss = self.build()(embeddings, labels)
        assert loss.shape == (), f"a loss is a scalar, not {list(loss.shape)}"
        loss.backward()
        assert embeddings.grad is not None and bool(embeddings.grad.isfinite().all()) and bool(embeddings.grad.any())

    def test_equal_embeddings_have_a_finite_gradient(self) -> None:
        labels = self._batch()[1]
        embeddings = torch.ones(len(labels), self.dim, requires_grad=True)
        self.build()(embeddings, labels).backward()
        assert embeddings.grad is not None and bool(embeddings.grad.isfinite().all()), (
            "the gradient of a collapsed batch"
        )

    def test_two_calls_agree_and_leave_the_batch_alone(self) -> None:
        loss, (embeddings, labels) = self.build().eval(), self._batch()
        kept = embeddings.clone(), labels.clone()
        assert torch.equal(loss(embeddings, labels), loss(embeddings, labels))
        assert torch.equal(embeddings, kept[0]) and torch.equal(labels, kept[1])

    def test_what_is_not_finite_is_not_hidden(self) -> None:
        embeddings, labels = self._batch()
        embeddings[0, 0] = torch.nan
        assert bool(self.build()(embeddings, labels).isnan()), "a NaN in an embedding must reach the loss"
