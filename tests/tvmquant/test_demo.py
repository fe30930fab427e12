import sys

import numpy as np
import pytest

from tvmquant import demo
from tvmquant.errors import DataError


def test_digits_are_images_of_all_classes():
    images, labels = demo.load_digits()
    assert images.shape == (1797, 16, 16)
    assert images.dtype == np.uint8
    assert images.max() == 240
    assert set(labels) == set(range(10))


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'tvmquant\[demo\]'"):
        demo.run_demo(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(DataError, match=r"file.* cannot be made: .*choose another with --out"):
            demo.run_demo(out)


def test_training_repeats_itself_and_leaves_torchs_generator_alone():
    import torch

    images, labels = demo.load_digits()
    batch = np.stack([demo.RECIPE.apply(image, "digit") for image in images[:64]])
    before = torch.random.get_rng_state()
    steps = []
    first, second = (
        demo.train(batch, labels[:64], epochs=1, progress=lambda d, t: steps.append((d, t)))
        for _ in range(2)
    )
    assert steps == [(1, 2), (2, 2)] * 2
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_demo_compiles_a_network_that_stays_accurate(tmp_path):
    result = demo.run_demo(tmp_path, epochs=2, repeats=3)
    assert result.float_operators == 0
    assert result.evaluation.count == 360
    assert result.evaluation.reference_top1 > 90.0
    assert result.evaluation.top1 > result.evaluation.reference_top1 - 1.5
    assert result.evaluation.agreement > 98.0
    assert set(result.latencies) == {"library", "float", "float_torch"}
    assert result.bytes["library"] > 100_000
    assert (tmp_path / "int8" / "manifest.json").exists()
