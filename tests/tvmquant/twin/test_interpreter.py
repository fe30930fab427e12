"""The whole interpreter: names, liveness, gradients, observation, errors."""

import copy
import gc
import tracemalloc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from tvm import relax

from tests.tvmquant.twin.graphs import fake_quant, graph, named, run_in_tvm, small_network
from tvmquant.errors import DataError, ModelError, QuantizationError
from tvmquant.twin import Twin

SCALES: dict[str, dict[str, Any]] = {
    name: {"scale": 0.02, "zero_point": 128}
    for name in ("input", "relu", "left", "right", "logits")
}


@pytest.fixture
def x() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).normal(0, 1, (2, 3, 8, 8)).astype(np.float32))


def reference(x: torch.Tensor, twin: Twin) -> torch.Tensor:
    """`small_network` written in torch, reading the twin's parameters by name."""
    p = dict(twin.named_parameters())

    def conv(x: torch.Tensor, name: str) -> torch.Tensor:
        y = torch.nn.functional.conv2d(x, p[f"{name}:weight"], padding=1) + p[f"{name}:bias"]
        return torch.relu(y)

    stem = conv(x, "stem")
    both = torch.cat([conv(stem, "left_conv"), conv(stem, "right_conv")], 1)
    return both.mean((2, 3)) @ p["dense:weight"]


class TestFloat:
    def test_equals_torch_reference(self, x: torch.Tensor) -> None:
        twin = Twin(small_network())
        torch.testing.assert_close(twin(x), reference(x, twin))

    def test_parameters_are_the_weights_and_biases(self) -> None:
        twin = Twin(small_network())
        layers = ("stem", "left_conv", "right_conv")
        expected = {f"{name}:{role}" for name in layers for role in ("weight", "bias")}
        assert set(dict(twin.named_parameters())) == expected | {"dense:weight"}
        assert set(twin.weights) == {"stem", "left.conv", "right.conv", "dense"}
        assert twin.weights["left.conv"] is dict(twin.named_parameters())["left_conv:weight"]

    def test_quantized_weight_keeps_its_name(self) -> None:
        weight = relax.const(np.ones((2, 3, 1, 1), np.float32))

        def body(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
            quantized = builder.emit(fake_quant(weight, "conv.weight", role="weight"))
            return named(relax.op.nn.conv2d(x, quantized), "conv")

        twin = Twin(graph((1, 3, 4, 4), body))
        assert list(dict(twin.named_parameters())) == ["conv:weight"]
        assert list(twin.weights) == ["conv"]

    def test_weights_written_in_place_are_used(self, x: torch.Tensor) -> None:
        twin = Twin(small_network())
        with torch.no_grad():
            twin.weights["dense"].zero_()
        assert not twin(x).any()

    def test_constant_used_twice_is_one_parameter(self) -> None:
        weight = relax.const(np.full((3, 3, 1, 1), 0.5, np.float32))

        def body(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
            return relax.op.nn.conv2d(builder.emit(relax.op.nn.conv2d(x, weight)), weight)

        twin = Twin(graph((1, 3, 4, 4), body))
        assert len(list(twin.parameters())) == 1
        torch.testing.assert_close(
            twin(torch.ones(1, 3, 4, 4)), torch.full((1, 3, 4, 4), 2.25)
        )  # fmt: skip

    def test_several_outputs_are_a_tuple(self) -> None:
        module = graph((2, 4), lambda _b, x: [relax.op.split(x, 2, 1), relax.op.negative(x)])
        x = torch.arange(8.0).reshape(2, 4)
        halves, negated = Twin(module)(x)
        expected_halves, expected = run_in_tvm(module, x.numpy())
        np.testing.assert_array_equal(halves[1], expected_halves[1])
        np.testing.assert_array_equal(negated, expected)

    def test_output_that_is_an_input(self) -> None:
        x = torch.ones(2, 4)
        assert Twin(graph((2, 4), lambda _b, x: x))(x) is x

    def test_copy_is_independent(self, x: torch.Tensor) -> None:
        twin = Twin(small_network())
        other = copy.deepcopy(twin)
        with torch.no_grad():
            other.weights["dense"].zero_()
        assert twin(x).any()
        assert not other(x).any()


class TestGradients:
    def test_gradient_of_every_parameter(self, x: torch.Tensor) -> None:
        twin = Twin(small_network())
        twin(x).square().sum().backward()
        found = {name: p.grad for name, p in twin.named_parameters()}
        twin.zero_grad()
        other = reference(x, twin).square().sum()
        for name, p in twin.named_parameters():
            (expected,) = torch.autograd.grad(other, p, retain_graph=True)
            torch.testing.assert_close(found[name], expected)
            assert expected.any()

    def test_hessian_vector_product(self, x: torch.Tensor) -> None:
        """Against a central difference of gradients, in float64."""
        twin = Twin(small_network()).double()
        weight = twin.weights["stem"]
        vector = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).double()

        def gradient() -> torch.Tensor:
            loss = torch.logsumexp(twin(x.double()), 1).sum()
            return torch.autograd.grad(loss, weight, create_graph=True)[0]

        (product,) = torch.autograd.grad(gradient(), weight, vector)
        step = 1e-6
        with torch.no_grad():
            weight += step * vector
            ahead = weight.clone()
        forward = gradient().detach()
        with torch.no_grad():
            weight.copy_(ahead - 2 * step * vector)
        backward = gradient().detach()
        assert product.abs().max() > 1e-4
        torch.testing.assert_close(product, (forward - backward) / (2 * step), rtol=1e-4, atol=1e-6)

    def test_straight_through_quantized_network(self, x: torch.Tensor) -> None:
        """Rounding passes the float gradient; scales so fine that nothing else differs."""
        fine = {
            name: {"scale": 1e-4, "zero_point": 2**18, "qmax": 2**19 - 1} for name in SCALES
        }  # fmt: skip
        twin = Twin(small_network(**fine), mode="quantized")
        twin(x).sum().backward()
        found = twin.weights["stem"].grad
        twin.zero_grad()
        twin.mode = "float"
        twin(x).sum().backward()
        torch.testing.assert_close(found, twin.weights["stem"].grad, rtol=1e-2, atol=1e-3)


class TestEdges:
    def test_observed_once_before_quantization(self, x: torch.Tensor) -> None:
        seen: dict[str, torch.Tensor] = {}

        def observe(edge_id: str, tensor: torch.Tensor) -> None:
            assert edge_id not in seen
            seen[edge_id] = tensor

        twin = Twin(small_network(**SCALES), observe=observe)
        result = twin(x)
        assert list(seen) == ["input", "relu", "left", "right", "logits"]
        assert seen["input"] is x
        torch.testing.assert_close(seen["logits"], result)
        assert [edge.id for edge in twin.edges] == list(seen)

        seen.clear()
        twin.mode = "quantized"
        twin(x)
        assert seen["input"] is x
        assert list(seen) == ["input", "relu", "left", "right", "logits"]

    def test_modes(self, x: torch.Tensor) -> None:
        twin = Twin(small_network(**SCALES), mode="quantized")
        quantized = twin(x)
        twin.mode = "float"
        plain = twin(x)
        assert not torch.equal(quantized, plain)
        steps = quantized / 0.02
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)

    def test_quantized_mode_needs_scales(self) -> None:
        edges = {name: value for name, value in SCALES.items() if name != "relu"}
        with pytest.raises(QuantizationError, match=r"1 of 5 edges have no scale.*'relu'"):
            Twin(small_network(**edges), mode="quantized")

    def test_unknown_mode(self) -> None:
        with pytest.raises(QuantizationError, match="'int8'; expected one of float, quantized"):
            Twin(small_network(), mode="int8")  # type: ignore[arg-type]


class TestMemory:
    def test_values_die_after_their_last_reader(self) -> None:
        """At every operator of a chain, only the tensor that it reads is alive."""
        alive: list[weakref.ref[torch.Tensor]] = []
        counts = []

        def observe(_edge_id: str, tensor: torch.Tensor) -> None:
            alive.append(weakref.ref(tensor))
            gc.collect()
            counts.append(sum(ref() is not None for ref in alive))

        def body(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
            for index in range(6):
                x = builder.emit(relax.op.negative(builder.emit(fake_quant(x, f"e{index}"))))
            return x

        with torch.no_grad():
            Twin(graph((4,), body), observe=observe)(torch.ones(4))
        # The caller holds the input all along.
        assert counts == [1, 2, 2, 2, 2, 2]

    def test_flat_in_the_number_of_runs(self, x: torch.Tensor) -> None:
        twin = Twin(small_network())
        with torch.no_grad():
            twin(x)
            tracemalloc.start()
            twin(x)
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(20):
                twin(x)
            after = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
        assert after - before < 1000


class TestErrors:
    @pytest.mark.parametrize("shape", [(2, 3, 8, 9), (3, 8, 8), (2, 1, 8, 8)])
    def test_wrong_shape(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(DataError, match=r"input 'x' has shape .* takes \(any, 3, 8, 8\)"):
            Twin(small_network())(torch.zeros(shape))

    def test_wrong_number_of_inputs(self) -> None:
        with pytest.raises(DataError, match="0 inputs; the model takes 1: x"):
            Twin(small_network())()

    def test_control_flow(self) -> None:
        def body(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
            return builder.match_cast(x, relax.TensorType([2, 4], "float32"))

        with pytest.raises(ModelError, match="straight-line"):
            Twin(graph((2, 4), body))


class TestSingleTensors:
    """What sensitivity needs: one weight or activation at a time."""

    def test_transform_replaces_tensors_in_float_mode(self, x: torch.Tensor) -> None:
        twin = Twin(small_network(**SCALES))
        before, seen = twin(x), []

        def transform(edge: str, tensor: torch.Tensor) -> torch.Tensor:
            seen.append(edge)
            return tensor * 2 if edge == "logits" else tensor

        twin.transform = transform
        torch.testing.assert_close(twin(x), 2 * before)
        assert seen == [edge.id for edge in twin.edges]

    def test_quantizers_are_those_of_the_quantized_mode(self, x: torch.Tensor) -> None:
        twin = Twin(small_network(**SCALES))
        quantizers = twin.quantizers
        assert set(quantizers) == set(SCALES)
        twin.transform = lambda edge, tensor: quantizers[edge](tensor)
        found = twin(x)
        twin.transform = None
        twin.mode = "quantized"
        torch.testing.assert_close(found, twin(x), rtol=0, atol=0)

    def test_weight_edges(self) -> None:
        weight = relax.const(np.ones((2, 3, 1, 1), np.float32))

        def body(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
            quantized = builder.emit(fake_quant(weight, "conv.weight", role="weight"))
            return named(relax.op.nn.conv2d(x, quantized), "conv")

        assert Twin(graph((1, 3, 4, 4), body)).weight_edges == {"conv": "conv.weight"}
        assert Twin(small_network()).weight_edges == {}
