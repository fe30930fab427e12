import itertools

import torch

from tvmquant.training import Recipe
from tvmquant.training.augmentation import augmented
from tvmquant.training.items import Items, batches_of
from tvmquant.training.recipe import Augmentation


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


def test_images_are_moved_and_mirrored() -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.rand(64, 2, 5, 6, generator=random) + 1.0
    found = augmented(images, Augmentation(shift=2, mirror=True), random)
    moves = set()
    for before, after in zip(images, found, strict=True):
        padded = torch.nn.functional.pad(before, (2, 2, 2, 2))
        crops = {}
        for row, column in itertools.product(range(5), range(5)):
            crop = padded[:, row : row + 5, column : column + 6]
            crops |= {(row, column, False): crop, (row, column, True): crop.flip(2)}
        (move,) = [key for key, crop in crops.items() if torch.equal(crop, after)]
        moves.add(move)
    assert len(moves) > 25
    assert {mirrored for _, _, mirrored in moves} == {False, True}
    assert augmented(images, Augmentation(), random) is images
