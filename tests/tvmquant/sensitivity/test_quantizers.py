"""What each width does, as the annotated graphs say."""

import pytest
import torch
from torch import nn

import tvmquant
from tvmquant.bit_choice import W4A4, W4A8, BitChoice
from tvmquant.quantization import apply_calibration
from tvmquant.sensitivity.quantizers import make_quantizers
from tvmquant.twin import Twin

G32 = BitChoice.parse("w4a8g32")


def test_all_tensors_together_are_the_quantized_network(graph, calibration, images):
    """Every weight and activation replaced at once gives what the twin computes quantized."""
    quantizers = make_quantizers(graph, calibration, [W4A4])
    choices = {layer.id: W4A4 for layer in quantizers.layers}
    annotated = apply_calibration(graph, calibration, choices=choices)
    x = torch.from_numpy(images)
    seen = {}
    twin = Twin(annotated.module, mode="quantized", observe=seen.setdefault)
    with torch.no_grad():
        twin(x)
    for edge, by_width in quantizers.activations.items():
        expected = twin.quantizers[edge](seen[edge])
        torch.testing.assert_close(by_width["uint4"](seen[edge]), expected, rtol=0, atol=0)
    for layer, edge in twin.weight_edges.items():
        expected = twin.quantizers[edge](twin.weights[layer])
        torch.testing.assert_close(quantizers.weights[layer]["int4"], expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "options", [{"weight_method": "minmax"}, {"activation_scheme": "symmetric"}]
)
def test_scheme_and_weight_method_are_those_asked_for(graph, images, options):
    scheme = options.get("activation_scheme", "asymmetric")
    calibration = tvmquant.calibrate(graph, images, activation_scheme=scheme)
    found = make_quantizers(graph, calibration, [W4A4], **options)
    choices = {layer.id: W4A4 for layer in found.layers}
    annotated = apply_calibration(graph, calibration, choices=choices, **options)
    twin = Twin(annotated.module)
    x = torch.linspace(-3, 3, 101)[:, None, None, None]
    for layer in found.layers:
        expected = twin.quantizers[twin.weight_edges[layer.id]](twin.weights[layer.id])
        torch.testing.assert_close(found.weights[layer.id]["int4"], expected, rtol=0, atol=0)
        for edge in layer.edges:
            expected = twin.quantizers[edge](x)
            torch.testing.assert_close(
                found.activations[edge]["uint4"](x), expected, rtol=0, atol=0
            )
    default = make_quantizers(graph, tvmquant.calibrate(graph, images), [W4A4])
    changed = [
        not torch.equal(default.weights[layer.id]["int4"], found.weights[layer.id]["int4"])
        or any(
            not torch.equal(default.activations[e]["uint4"](x), found.activations[e]["uint4"](x))
            for e in layer.edges
        )
        for layer in found.layers
    ]
    assert any(changed)


def test_groups_are_finer(graph, calibration):
    quantizers = make_quantizers(graph, calibration, [W4A8, G32])
    for layer in quantizers.layers:
        weight = quantizers.twin.weights[layer.id]
        errors = {n: float((w - weight).norm().detach()) for n, w in
                  quantizers.weights[layer.id].items()}  # fmt: skip
        assert set(errors) == {"int8", "int4", "int4g32"}
        assert errors["int8"] < errors["int4"]


def test_tied_layers_that_cannot_all_be_narrow_stay_wide(import_network):
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.deep = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=4, padding=1)
            self.point, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

        def forward(self, x):
            y = torch.relu(self.stem(x))
            return self.head((self.deep(y) + self.point(y)).mean((2, 3)))

    quantizers = make_quantizers(*import_network(Fork()), [G32, BitChoice.parse("w4a4g32")])
    by_id = {layer.id: layer for layer in quantizers.layers}
    (shared,) = by_id["/deep/Conv"].edges
    assert by_id["/point/Conv"].edges == (shared,)
    assert set(quantizers.activations[shared]) == {"uint8"}
    assert quantizers.readers[shared] == 2
    assert set(quantizers.weights["/deep/Conv"]) == {"int8"}
    assert set(quantizers.weights["/point/Conv"]) == {"int8", "int4g32"}
    assert set(quantizers.activations[by_id["/stem/Conv"].edges[0]]) == {"uint8", "uint4"}
