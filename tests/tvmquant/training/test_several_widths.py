"""A network at several widths computes, at each, what one of that width alone does."""

import numpy as np
import pytest
import torch

import tvmquant
from tests.tvmquant.training import small
from tvmquant import formats
from tvmquant.bit_choice import BitChoice
from tvmquant.errors import QuantizationError, TrainingError
from tvmquant.layers import quantizable_layers, uniform_choices
from tvmquant.passes import pipeline
from tvmquant.quantization import calibrate
from tvmquant.training import Recipe
from tvmquant.training.quantizers import put_in
from tvmquant.training.several_widths import SeveralWidths, SwitchedQuantizer
from tvmquant.training.start import start_of
from tvmquant.twin import Twin

CHOICES = [BitChoice.parse(name) for name in ("w8a8", "w4a4", "w3a3", "w2a2")]
RECIPE = Recipe(batch_size=16, batch_norm="live")


@pytest.fixture(scope="module")
def calibration(graph):
    return calibrate(graph, small.data()[0], fold_batch_norm=False)


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """A network whose residual connections share what layers read."""
    torch.manual_seed(0)
    conv = lambda: torch.nn.Conv2d(8, 8, 3, padding=1)  # noqa: E731

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.a, self.b, self.c = torch.nn.Conv2d(3, 8, 1), conv(), conv(), conv()
            self.last = torch.nn.Linear(8, small.CLASSES)

        def forward(self, x):
            x = torch.relu(self.first(x))
            x = torch.relu(x + self.b(torch.relu(self.a(x))))
            return self.last(torch.relu(x + self.c(x)).mean((2, 3)))

    from benchmarks.models.exporter import export_onnx

    path = tmp_path_factory.mktemp("residual") / "m.onnx"
    return tvmquant.load_onnx(export_onnx(Network().eval(), path, small.SHAPE))


def _images(count=16):
    return torch.from_numpy(small.data(count, seed=3)[0])


def _alone(graph, calibration, choice, recipe=RECIPE):
    choices = uniform_choices(quantizable_layers(graph), choice)
    start = start_of(graph, calibration, choices, recipe)
    twin = Twin(start.module, mode="quantized")
    put_in(twin, recipe)
    return twin


def _shares_ends(several, alone):
    """Give a network of one width the steps that all widths share: the widest begin them."""
    own = alone.quantizers
    with torch.no_grad():
        for name, quantizer in several.twin.quantizers.items():
            if not isinstance(quantizer, SwitchedQuantizer):
                own[name].scale.copy_(quantizer.scale)
    return alone


def _integers(graph, images):
    integer = graph.with_module(pipeline.integerize(graph.module, strict=True), "L2")
    return tvmquant.simulate(integer, images.numpy())[0]


def test_a_uniform_pass_is_that_of_the_width_alone(graph, calibration) -> None:
    several = SeveralWidths(graph, calibration, RECIPE, CHOICES, norms_by="weight")
    for choice in CHOICES:
        several.set_widths(choice)
        alone = _shares_ends(several, _alone(graph, calibration, choice))
        found, expected = several.twin(_images()), alone(_images())
        assert torch.equal(found, expected)
        found.square().sum().backward()
        expected.square().sum().backward()
        quantizers = several.twin.quantizers
        for edge, other in alone.quantizers.items():
            mine = getattr(quantizers[edge], "chosen", quantizers[edge])
            if other.scale.requires_grad:
                torch.testing.assert_close(mine.scale.grad, other.scale.grad)
                mine.scale.grad = None
        several.twin.zero_grad()


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_each_assignment_is_written_back_exactly(residual, bits) -> None:
    recipe = Recipe(batch_norm="folded", residual_bits=bits)
    calibration = calibrate(residual, small.data()[0])
    several = SeveralWidths(residual, calibration, recipe, CHOICES, per_tensor=True)
    with torch.no_grad():
        for index, quantizer in enumerate(several.quantizers):
            quantizer.scale.mul_(1.0 + 0.01 * index)
        for parameter in several.twin.weights.values():
            parameter.mul_(1.1)
    random = torch.Generator().manual_seed(1)
    for choices in (CHOICES[0], CHOICES[3], several.drawn(random), several.drawn(random)):
        graph = several.graph_of(choices)
        expected = Twin(graph.module, mode="quantized")(_images())
        torch.testing.assert_close(several.twin(_images()), expected, rtol=0, atol=1e-5)
        exact = Twin(graph.module, mode="exact")(_images())
        np.testing.assert_array_equal(_integers(graph, _images()), exact.numpy())


def test_normalizations_of_each_width_keep_apart(graph, calibration) -> None:
    several = SeveralWidths(graph, calibration, RECIPE, CHOICES, norms_by="weight")
    several.twin.live_batch_norm = True
    several.set_widths(CHOICES[3])
    several.twin(_images())
    several.twin.live_batch_norm = False
    for choice in CHOICES[:3]:
        several.set_widths(choice)
        alone = _shares_ends(several, _alone(graph, calibration, choice))
        assert torch.equal(several.twin(_images()), alone(_images()))
    several.set_widths(CHOICES[3])
    narrow = _shares_ends(several, _alone(graph, calibration, CHOICES[3]))
    assert not torch.equal(several.twin(_images()), narrow(_images()))
    graph = several.graph_of(CHOICES[3])
    found = Twin(graph.module, mode="quantized")(_images())
    torch.testing.assert_close(several.twin(_images()), found, rtol=0, atol=1e-5)


def test_drawn_widths_are_all_there_are_and_tied_ones_agree(residual) -> None:
    calibration = calibrate(residual, small.data()[0])
    several = SeveralWidths(residual, calibration, Recipe(batch_norm="folded"), CHOICES)
    random = torch.Generator().manual_seed(0)
    seen = {layer.id: set() for layer in several.layers}
    for _ in range(200):
        drawn = several.drawn(random)
        several.set_widths(drawn)  # tied layers agree, or it would refuse
        for name, choice in drawn.items():
            seen[name].add(choice)
    ends = {layer.id: bool(layer.position) for layer in several.layers}
    assert {name: len(found) for name, found in seen.items()} == {
        name: 1 if end else 16 for name, end in ends.items()
    }


def test_widths_that_are_not_there_are_refused(graph, calibration) -> None:
    several = SeveralWidths(graph, calibration, RECIPE, CHOICES)
    layer = several.layers[1].id
    with pytest.raises(TrainingError, match=rf"layer '{layer}' is not trained at w5a4; its"):
        several.set_widths({layer: BitChoice.parse("w5a4")})
    with pytest.raises(QuantizationError, match="has no layer 'nobody'"):
        several.set_widths({"nobody": CHOICES[0]})
    assert several.formats[layer].weights == tuple(
        formats.parse(name) for name in ("int8", "int4", "int3", "int2")
    )
    with pytest.raises(TrainingError, match=r"no layer of .* but the ends has the widths w8a8"):
        SeveralWidths(graph, calibration, RECIPE, CHOICES[:1])
