from collections import namedtuple

import numpy as np
import pytest
import torch

from tvmquant.data import open_data
from tvmquant.errors import TrainingError
from tvmquant.training import Recipe
from tvmquant.training.items import Items, batches_of, read


def _items(count: int = 10) -> Items:
    return Items(torch.arange(count * 48.0).reshape(count, 3, 4, 4), torch.arange(count))


def test_an_epoch_holds_full_batches_in_an_order_of_its_own() -> None:
    recipe = Recipe(batch_size=4)
    first, again, other = (list(batches_of(_items(), recipe, e)) for e in (0, 0, 1))
    assert [len(inputs) for inputs, _ in first] == [4, 4]
    labels = torch.cat([labels for _, labels in first])
    assert len(set(labels.tolist())) == 8
    for (inputs, labels), (same, _) in zip(first, again, strict=True):
        assert torch.equal(inputs, same)
        assert torch.equal(inputs, _items().inputs[labels])
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(first, other, strict=True))


def test_an_epoch_goes_on_at_any_step() -> None:
    recipe = Recipe(batch_size=3, augmentation={"shift": 1, "mixup": 0.5})
    whole, rest = (list(batches_of(_items(), recipe, 1, first=n, classes=10)) for n in (0, 2))
    assert len(rest) == 1
    for one, other in zip(whole[2], rest[0], strict=True):
        assert torch.equal(one, other)


def test_items_without_labels_are_mixed_too() -> None:
    recipe = Recipe(batch_size=10, augmentation={"mixup": 0.5})
    ((inputs, labels),) = batches_of(Items(_items().inputs, None), recipe, 0, classes=10)
    assert labels is None
    whole = {tuple(item.flatten().tolist()) for item in _items().inputs}
    assert not whole & {tuple(item.flatten().tolist()) for item in inputs}


def test_what_memory_cannot_hold_lies_in_a_file(tmp_path, monkeypatch) -> None:
    images = np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32)
    data = open_data((images, np.arange(40)), batch_size=16, input_shape=(3, 8, 8))
    held = read(data)
    free = namedtuple("Free", "available free")
    monkeypatch.setattr("psutil.virtual_memory", lambda: free(40_000, 0))
    with pytest.raises(TrainingError, match=r"40 items take 0.0 GB, more than half of the fr"):
        read(data)
    filed = read(data, folder=tmp_path / "out")
    assert torch.equal(filed.inputs, held.inputs)
    assert torch.equal(filed.labels, held.labels)
    assert filed.digest() == held.digest()
    assert list((tmp_path / "out").iterdir()) == []  # it has no name
    monkeypatch.setattr("psutil.disk_usage", lambda _path: free(0, 40_000))
    with pytest.raises(TrainingError, match=r"than half of what is free in .*out; select fewer"):
        read(data, folder=tmp_path / "out")
