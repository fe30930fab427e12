"""Growth of the loss by one quantized tensor, and the control, against plain torch."""

import pytest
import torch
from torch import nn

from tests.tvmquant.sensitivity.test_curvature import LAYERS, labelled, oriented
from tvmquant.bit_choice import W4A4
from tvmquant.sensitivity import estimate_sensitivity
from tvmquant.sensitivity.quantizers import make_quantizers


@pytest.mark.parametrize("use_labels", [False, True])
def test_growth_is_that_of_torch(network, graph, calibration, images, use_labels):
    """Equation (3)."""
    data, labels = labelled(images)
    found = estimate_sensitivity(
        graph, data, calibration, method="output", choices=[W4A4], labels=use_labels
    )
    quantizers = make_quantizers(graph, calibration, [W4A4])
    x = torch.from_numpy(images)
    logits = network(x).detach()
    targets = labels if use_labels else logits.softmax(1)

    def growth(changed):
        loss, double = nn.functional.cross_entropy, torch.Tensor.double
        goal = targets if use_labels else double(targets)
        return max(float(loss(double(changed), goal) - loss(double(logits), goal)), 0.0)

    for layer, index in zip(quantizers.layers, LAYERS, strict=True):
        weight = oriented(quantizers.weights[layer.id]["int4"], network[index].weight)
        changed = torch.func.functional_call(network, {f"{index}.weight": weight}, x).detach()
        entry = found.layers[layer.id]
        assert entry.weight["int4"] == pytest.approx(growth(changed), rel=1e-3, abs=1e-8)
        inner = quantizers.activations[layer.edges[0]]["uint4"](network[:index](x).detach())
        expected = growth(network[index:](inner).detach())
        assert entry.activation["uint4"] == pytest.approx(expected, rel=1e-3, abs=1e-8)


def test_the_network_is_left_as_it_was(graph, calibration, images, monkeypatch):
    kept = []

    def keep(*arguments, **options):
        kept.append(make_quantizers(*arguments, **options))
        return kept[0]

    monkeypatch.setattr("tvmquant.sensitivity.estimate.make_quantizers", keep)
    estimate_sensitivity(graph, images, calibration, method="output")
    twin = kept[0].twin
    assert twin.transform is None
    assert twin.mode == "float"


def test_the_control_depends_on_the_seed_only(graph, calibration, images):
    def control(data, seed):
        return estimate_sensitivity(
            graph, data, calibration, method="random", seed=seed
        ).perturbation

    assert control(images, 0) == control(images[:4] + 1, 0)
    assert control(images, 0) != control(images, 1)
    for row in control(images, 0).values():
        assert 0 < row["w8a8"] < row["w4a8"] < row["w4a4"]
