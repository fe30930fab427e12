"""Traces and terms against exact Hessians, gradients of single items and closed forms."""

import gc
import math

import numpy as np
import pytest
import torch
from torch import nn

from tvmquant.bit_choice import W4A4
from tvmquant.data import open_data
from tvmquant.sensitivity import estimate_sensitivity
from tvmquant.sensitivity.curvature import PROBES, Trace
from tvmquant.sensitivity.quantizers import make_quantizers

LAYERS = (0, 2, 6)
# Standard errors that an estimate may be off.
ERRORS = 4.0


def labelled(images, classes=3):
    labels = np.arange(len(images)) % classes
    pairs = [(image, int(label)) for image, label in zip(images, labels, strict=True)]
    return open_data(pairs), torch.from_numpy(labels)


def oriented(weight, like):
    """Return a weight of the graph as torch has it: Relax multiplies by (inputs, outputs)."""
    return weight.T if weight.ndim == 2 and weight.shape != like.shape else weight


def loss_against(targets):
    return lambda output: nn.functional.cross_entropy(output, targets)


def trace_of_weight(network, index, x, loss):
    """Return the trace of the exact Hessian of a layer's weight."""
    weight = network[index].weight.detach()

    def of_weight(flat):
        changed = {f"{index}.weight": flat.reshape(weight.shape)}
        return loss(torch.func.functional_call(network, changed, x))

    return float(torch.autograd.functional.hessian(of_weight, weight.flatten()).trace())


def trace_of_activation(network, index, x, targets):
    """Return the trace of the exact Hessian of what a layer reads, averaged over the items."""
    total = 0.0
    for item, target in zip(x, targets, strict=True):
        loss = loss_against(target[None])
        inner = network[:index](item[None]).detach()
        hessian = torch.autograd.functional.hessian(
            lambda a, loss=loss: loss(network[index:](a)), inner
        )
        total += float(hessian.reshape(inner.numel(), inner.numel()).trace())
    return total / len(x)


@pytest.fixture(scope="module", params=["own predictions", "labels"])
def case(request, network, graph, calibration, images):
    x = torch.from_numpy(images)
    data, labels = labelled(images)
    use_labels = request.param == "labels"
    targets = labels if use_labels else network(x).detach().softmax(1)
    found = estimate_sensitivity(
        graph, data, calibration, labels=use_labels, choices=[W4A4], tolerance=0.06,
        max_probes=128, batch_size=4 if use_labels else 8,
    )  # fmt: skip
    return found, x, targets


class TestExactHessian:
    def test_traces_of_weights(self, case, network):
        found, x, targets = case
        assert found.relative_error < 0.12
        for layer, index in zip(found.layers.values(), LAYERS, strict=True):
            exact = trace_of_weight(network, index, x, loss_against(targets))
            assert abs(layer.trace - exact) < ERRORS * layer.standard_error
            assert layer.standard_error < 0.2 * exact

    def test_terms_of_weights(self, case, network, graph, calibration):
        """Equation (1), first half."""
        found = case[0]
        weights = make_quantizers(graph, calibration, [W4A4]).weights
        for (name, layer), index in zip(found.layers.items(), LAYERS, strict=True):
            original = network[index].weight.detach()
            for width in ("int4", "int8"):
                delta = oriented(weights[name][width], original) - original
                expected = layer.trace / original.numel() * float(delta.square().sum())
                assert layer.weight[width] == pytest.approx(expected, rel=1e-4)

    def test_terms_of_activations(self, case, network, graph, calibration):
        """Equation (1), second half, each of them known to the tolerance."""
        found, x, targets = case
        quantizers = make_quantizers(graph, calibration, [W4A4])
        for layer, index in zip(quantizers.layers, LAYERS, strict=True):
            inner = network[:index](x).detach()
            delta = quantizers.activations[layer.edges[0]]["uint4"](inner) - inner
            trace = trace_of_activation(network, index, x, targets)
            expected = trace / inner[0].numel() * float(delta.square().sum()) / len(x)
            assert found.layers[layer.id].activation["uint4"] == pytest.approx(
                expected, rel=ERRORS * found.relative_error
            )


def test_labels_do_not_matter_where_networks_are_piecewise_linear(import_network, images):
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3)
    )
    graph, calibration = import_network(network)
    data, labels = labelled(images)
    soft = estimate_sensitivity(graph, data, calibration, max_probes=4)
    hard = estimate_sensitivity(graph, data, calibration, max_probes=4, labels=True)
    assert hard.perturbation == soft.perturbation
    x = torch.from_numpy(images)
    assert trace_of_weight(network, 0, x, loss_against(labels)) == pytest.approx(
        trace_of_weight(network, 0, x, loss_against(network(x).detach().softmax(1))), rel=1e-4
    )


class TestFisher:
    def test_labels_give_the_squares_of_each_items_gradient(
        self, network, graph, calibration, images
    ):
        """Equation (2)."""
        data, labels = labelled(images)
        found = estimate_sensitivity(
            graph, data, calibration, method="fisher", labels=True, choices=[W4A4]
        )
        assert (found.probes, found.relative_error, found.converged) == (0, None, True)
        quantizers = make_quantizers(graph, calibration, [W4A4])
        for layer, index in zip(quantizers.layers, LAYERS, strict=True):
            weight = network[index].weight
            fisher, term = torch.zeros_like(weight), 0.0
            for image, label in zip(images, labels, strict=True):
                inner = network[:index](torch.from_numpy(image[None])).detach().requires_grad_()
                loss = nn.functional.cross_entropy(network[index:](inner), label[None])
                of_weight, of_inner = torch.autograd.grad(loss, [weight, inner])
                fisher += of_weight.square() / len(images)
                delta = quantizers.activations[layer.edges[0]]["uint4"](inner.detach()) - inner
                term += 0.5 * float((of_inner * delta.detach()).square().sum()) / len(images)
            delta = oriented(quantizers.weights[layer.id]["int4"], weight) - weight.detach()
            expected = 0.5 * float((fisher * delta.square()).sum())
            assert found.layers[layer.id].weight["int4"] == pytest.approx(expected, rel=1e-4)
            assert found.layers[layer.id].activation["uint4"] == pytest.approx(term, rel=1e-4)
            assert found.layers[layer.id].trace == pytest.approx(float(fisher.sum()), rel=1e-4)

    def test_predictions_give_the_expectation_over_classes(
        self, network, graph, calibration, images
    ):
        found = estimate_sensitivity(
            graph, images, calibration, method="fisher", choices=[W4A4], tolerance=0.05,
            max_probes=128,
        )  # fmt: skip
        x = torch.from_numpy(images)
        probabilities = network(x).softmax(1).detach()
        for layer, index in zip(found.layers.values(), LAYERS, strict=True):
            fisher = torch.zeros_like(network[index].weight)
            for item, row in zip(x, probabilities, strict=True):
                scores = network(item[None]).log_softmax(1)[0]
                for score, probability in zip(scores, row, strict=True):
                    (gradient,) = torch.autograd.grad(
                        score, network[index].weight, retain_graph=True
                    )
                    fisher += probability * gradient.square() / len(x)
            assert abs(layer.trace - float(fisher.sum())) < ERRORS * layer.standard_error


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(1).standard_normal((7, 6)).astype(np.float32)


class TestClosedForms:
    """One dense layer: the output is x @ w, items alone in a batch leave nothing to chance."""

    @pytest.mark.parametrize("method", ["hessian", "fisher"])
    @pytest.mark.parametrize("end", [nn.Identity(), nn.Sigmoid()])
    def test_one_value(self, import_network, rows, method, end):
        """Squared error: S = 1; a yes or no: S = q (1 - q). H_W = E S x x', H_a = E S w w'."""
        layer = nn.Linear(6, 1)
        graph, calibration = import_network(nn.Sequential(layer, end), rows)
        found = estimate_sensitivity(
            graph, rows, calibration, method=method, batch_size=1, choices=[W4A4]
        )
        assert found.losses == [
            "squared_error" if isinstance(end, nn.Identity) else "binary_cross_entropy"
        ]
        x, w = rows.astype(np.float64), layer.weight.detach().numpy().astype(np.float64)
        q = 1 / (1 + np.exp(-(x @ w.T + layer.bias.item())))
        S = np.ones((7, 1)) if isinstance(end, nn.Identity) else q * (1 - q)
        quantizers = make_quantizers(graph, calibration, [W4A4])
        (name,) = found.layers
        (edge,) = quantizers.activations
        delta_w = quantizers.weights[name]["int4"].numpy().T - w
        delta_a = quantizers.activations[edge]["uint4"](torch.from_numpy(rows)).numpy() - rows
        if method == "hessian":
            weight = (S * x**2).sum(1).mean() / 6 * (delta_w**2).sum()
            activation = (S * w**2).sum(1).mean() / 6 * (delta_a**2).sum(1).mean()
        else:
            weight = 0.5 * ((S * x**2).mean(0) * delta_w**2).sum()
            activation = 0.5 * (S * w**2 * delta_a**2).sum(1).mean()
        entry = found.layers[name]
        assert entry.trace == pytest.approx((S * x**2).sum(1).mean(), rel=1e-4)
        assert entry.standard_error == pytest.approx(0.0, abs=1e-6)
        assert entry.weight["int4"] == pytest.approx(weight, rel=1e-3)
        assert entry.activation["uint4"] == pytest.approx(activation, rel=1e-3)
        assert (found.count, found.probes, found.converged) == (7, PROBES, True)

    def test_classes(self, import_network, rows):
        """tr H_W = E |x|^2 (1 - |q|^2)."""
        layer = nn.Linear(6, 4)
        graph, calibration = import_network(layer, rows)
        found = estimate_sensitivity(graph, rows, calibration, max_probes=400, batch_size=3)
        q = layer(torch.from_numpy(rows)).softmax(1).detach().numpy()
        exact = ((rows**2).sum(1) * (1 - (q**2).sum(1))).mean()
        (entry,) = found.layers.values()
        assert abs(entry.trace - exact) < ERRORS * entry.standard_error


class TestOutputs:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_a_map_is_averaged_over_its_positions(self, import_network, images, channels):
        network = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, channels, 1))
        graph, calibration = import_network(network)
        found = estimate_sensitivity(graph, images, calibration, max_probes=128)
        x = torch.from_numpy(images)
        soft = network(x).detach()

        def loss(output):
            if channels == 1:
                return 0.5 * nn.functional.mse_loss(output, soft)
            return nn.functional.cross_entropy(output, soft.softmax(1))

        for layer, index in zip(found.layers.values(), (0, 2), strict=True):
            exact = trace_of_weight(network, index, x, loss)
            assert abs(layer.trace - exact) < ERRORS * layer.standard_error

    def test_losses_of_several_outputs_add_up(self, import_network, images):
        class Both(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.side = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 1, 1)
                self.head = nn.Linear(4, 3)

            def forward(self, x):
                y = torch.relu(self.stem(x))
                return self.head(y.mean((2, 3))), self.side(y)

        network = Both()
        graph, calibration = import_network(network)
        found = estimate_sensitivity(graph, images, calibration, max_probes=128)
        assert found.losses == ["cross_entropy", "squared_error"]
        x = torch.from_numpy(images)
        soft = [output.detach() for output in network(x)]
        weight = network.stem.weight.detach()

        def loss(flat):
            changed = {"stem.weight": flat.reshape(weight.shape)}
            scores, values = torch.func.functional_call(network, changed, x)
            return nn.functional.cross_entropy(
                scores, soft[0].softmax(1)
            ) + 0.5 * nn.functional.mse_loss(values, soft[1])

        exact = float(torch.autograd.functional.hessian(loss, weight.flatten()).trace())
        entry = found.layers["/stem/Conv"]
        assert abs(entry.trace - exact) < ERRORS * entry.standard_error
        assert all(row["w4a8"] > 0 for row in found.perturbation.values())

    def test_a_softmax_at_the_end_changes_nothing(self, network, graph, calibration, import_network,
                                                  images):  # fmt: skip
        ended = import_network(nn.Sequential(*network, nn.Softmax(1)))
        for method in ("hessian", "fisher", "output"):
            plain = estimate_sensitivity(graph, images, calibration, method=method, max_probes=4)
            found = estimate_sensitivity(ended[0], images, ended[1], method=method, max_probes=4)
            for name, row in plain.perturbation.items():
                assert found.perturbation[name] == pytest.approx(row, rel=1e-2, abs=1e-9)


class TestProbes:
    def test_trace_is_the_mean_over_items(self):
        trace, samples = Trace(), np.random.default_rng(0).standard_normal((3, 4))
        for row, items in zip(samples, (8, 8, 5), strict=True):
            trace.add(list(row), items)
        weights = np.array([8, 8, 5]) / 21
        assert trace.mean == pytest.approx((samples.mean(1) * weights).sum())
        variances = samples.var(1, ddof=1) / 4
        assert trace.error == pytest.approx(math.sqrt((variances * weights**2).sum()))

    def test_the_limit_is_told(self, graph, calibration, images, caplog):
        found = estimate_sensitivity(graph, images, calibration, tolerance=1e-3, max_probes=9)
        assert found.probes == 2 * PROBES
        assert not found.converged
        assert found.relative_error > 1e-3
        assert "use more images or a greater max_probes" in caplog.text

    def test_a_tolerance_that_is_reached_ends_the_passes(self, graph, calibration, images):
        found = estimate_sensitivity(graph, images, calibration, tolerance=10.0)
        assert (found.probes, found.converged) == (PROBES, True)

    @pytest.mark.parametrize("method", ["hessian", "fisher", "output"])
    def test_data_that_can_be_read_once(self, graph, calibration, images, method):
        once = estimate_sensitivity(
            graph, (image for image in images), calibration, method=method, tolerance=1e-3
        )
        again = estimate_sensitivity(
            graph, images, calibration, method=method, tolerance=1e-3, max_probes=PROBES
        )
        assert once.data is None
        assert once.layers == again.layers

    @pytest.mark.parametrize("method", ["hessian", "fisher", "output"])
    def test_memory_does_not_grow(self, graph, calibration, images, method):
        alive = []

        def count(_done, _total):
            alive.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))

        estimate_sensitivity(
            graph, images, calibration, method=method, max_probes=4, progress=count
        )
        assert max(alive[1:]) <= alive[0] + 2
