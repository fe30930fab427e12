import itertools

import pytest
import torch

from tvmquant.errors import TrainingError
from tvmquant.training import Recipe
from tvmquant.training.augmentation import augmented, mixed, user_callable
from tvmquant.training.sections import Augmentation


def _random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


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


def test_a_part_is_resized_to_the_whole() -> None:
    row, column = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    images = torch.stack([row, column]).expand(64, 2, 12, 16)
    whole = augmented(images, Augmentation(resized_crop=(1.0, 1.0)), _random())
    # a ratio other than that of the image cuts, but keeps the middle
    torch.testing.assert_close(whole.mean((2, 3)), images.mean((2, 3)), atol=1.5, rtol=0.0)
    found = augmented(images, Augmentation(resized_crop=(0.25, 0.5)), _random())
    spans = found.amax((2, 3)) - found.amin((2, 3))
    area = (spans[:, 0] / 11) * (spans[:, 1] / 15)
    assert 0.15 < float(area.min()) < float(area.max()) < 0.6
    assert not torch.equal(found[0], found[1])


def test_colours_change_around_means() -> None:
    images = torch.rand(32, 3, 4, 4, generator=_random())
    brighter = augmented(images, Augmentation(brightness=0.5), _random()) - images
    for change in brighter:
        torch.testing.assert_close(change, change[0, 0, 0].expand_as(change), atol=1e-6, rtol=0.0)
    assert 0.3 < float(brighter.abs().max()) <= 0.5 + 1e-6
    for how in (Augmentation(contrast=0.5), Augmentation(saturation=0.5)):
        found = augmented(images, how, _random())
        torch.testing.assert_close(found.mean((1, 2, 3)), images.mean((1, 2, 3)))
        assert not torch.allclose(found, images)


def test_items_and_labels_are_mixed_alike() -> None:
    images = torch.eye(6).view(6, 1, 6, 1)
    found, labels = mixed(images, torch.arange(6), 6, 1.0, _random())
    torch.testing.assert_close(found.view(6, 6), labels)
    torch.testing.assert_close(labels.sum(1), torch.ones(6))
    assert 0.0 < float(labels[0, 0]) < 1.0


def flipped(images):
    return images.flip(3)


def halved(images):
    return images[:, :, ::2]


def test_a_callable_of_the_user_changes_images() -> None:
    images = torch.rand(2, 3, 4, 4)
    how = Augmentation(call=f"{__name__}:flipped")
    assert torch.equal(augmented(images, how, _random()), images.flip(3))
    with pytest.raises(TrainingError, match=r"returned \(2, 3, 2, 4\), expected a tensor of shape"):
        augmented(images, Augmentation(call=f"{__name__}:halved"), _random())
    with pytest.raises(TrainingError, match=r"augmentation.call 'nothing.such:f': No module named"):
        user_callable(Augmentation(call="nothing.such:f"))
    with pytest.raises(TrainingError, match="has no attribute 'none'"):
        user_callable(Augmentation(call=f"{__name__}:none"))


def test_what_is_no_image_is_not_moved() -> None:
    with pytest.raises(TrainingError, match=r"items of shape \(8,\) are no images"):
        augmented(torch.zeros(2, 8), Augmentation(mirror=True), _random())


def test_a_share_out_of_order_is_refused() -> None:
    with pytest.raises(TrainingError, match="resized_crop: the least share is greater"):
        Recipe.read("lsq", {"augmentation.resized_crop": (0.5, 0.25)})


def noisy(images: torch.Tensor) -> torch.Tensor:
    return images + torch.rand_like(images)


def test_chance_in_a_callable_follows_from_the_step_alone() -> None:
    images, how = torch.zeros(4, 1, 2, 2), Augmentation(call=f"{__name__}:noisy")
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(augmented(images, how, _random()))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*found)
