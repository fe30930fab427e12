"""A library of mixed precision with the record of a plan, as compiling with a budget leaves it."""

from collections.abc import Mapping
from pathlib import Path

from tests.tvmquant.networks import MIXTURE_SHAPE, export_mixture, images_of
from tvmquant.bit_choice import W4A8, W8A8, BitChoice
from tvmquant.deploy.build import build
from tvmquant.frontend import load_onnx
from tvmquant.layers import Layer, quantizable_layers, uniform_choices
from tvmquant.mixed_precision import RECORD_NAME, LayerRecord, MixedPrecisionRecord, PlanPoint
from tvmquant.quantization import calibrate, quantize

FIXED_MS = 0.2
NAMES = ("w8a8", "w4a8", "w4a4")

Choices = Mapping[str, BitChoice]


def perturbation(layer: Layer, choice: BitChoice) -> float:
    """Rounding noise of weights and activations: a quarter with every bit more."""
    return layer.weights * (4.0**-choice.weight.bits + 4.0**-choice.activation.bits) / layer.outputs


def milliseconds(layer: Layer, choice: BitChoice) -> float:
    """Narrower operands move faster; what is left is arithmetic."""
    return layer.macs * (choice.weight.bits + choice.activation.bits + 8) / 24e5


def names_of(layer: Layer) -> list[str]:
    return [n for n in NAMES if layer.allows(BitChoice.parse(n)) and not layer.position] or ["w8a8"]


def plan_point(name: str, layers: tuple[Layer, ...], choices: Choices, error=None) -> PlanPoint:
    predicted = FIXED_MS + sum(milliseconds(layer, choices[layer.id]) for layer in layers)
    return PlanPoint(
        name=name,
        size_bytes=sum(layer.weights * choices[layer.id].weight.bits // 8 for layer in layers),
        bops=sum(
            layer.macs * choice.weight.bits * choice.activation.bits
            for layer in layers
            for choice in [choices[layer.id]]
        ),
        perturbation=sum(perturbation(layer, choices[layer.id]) for layer in layers),
        predicted_ms=predicted,
        measured_ms=None if error is None else predicted * (1 + error),
    )


def frontier_of(layers: tuple[Layer, ...]) -> list[Choices]:
    """From every layer at 8 bits, narrow the one that costs least per time saved, to the end."""
    plan = {layer.id: BitChoice() for layer in layers}
    plans: list[Choices] = [plan]
    free = [layer for layer in layers if "w4a8" in names_of(layer)]
    w4a8 = BitChoice.parse("w4a8")
    for layer in sorted(free, key=lambda layer: perturbation(layer, w4a8) / layer.macs):
        plan = {**plan, layer.id: w4a8}
        plans.append(plan)
    return plans[::-1]


def record_of(layers: tuple[Layer, ...], choices: Choices, target: str) -> MixedPrecisionRecord:
    def layer_record(layer: Layer) -> LayerRecord:
        by_choice = {name: BitChoice.parse(name) for name in names_of(layer)}
        choice = str(choices[layer.id])
        return LayerRecord(
            id=layer.id,
            op=layer.op,
            macs=layer.macs,
            weights=layer.weights,
            outputs=layer.outputs,
            group=layer.group,
            position=layer.position,
            choice=choice,
            reason=f"{layer.position} layer" if layer.position else "saves most for its cost",
            perturbation={n: perturbation(layer, c) for n, c in by_choice.items()},
            milliseconds={n: milliseconds(layer, c) for n, c in by_choice.items()},
        )

    uniform = {name: uniform_choices(layers, BitChoice.parse(name)) for name in NAMES}
    return MixedPrecisionRecord(
        model="0123456789abcdef",
        target=target,
        threads=1,
        sensitivity="hessian",
        budgets={"latency": "3ms", "size": "0.99x"},
        fixed_ms=FIXED_MS,
        layers=[layer_record(layer) for layer in layers],
        chosen=plan_point("chosen", layers, choices, error=0.02),
        uniform=[plan_point(n, layers, c, error=-0.03) for n, c in uniform.items()],
        frontier=[plan_point("frontier", layers, c) for c in frontier_of(layers)],
    )


def build_mixture(folder: Path) -> Path:
    """Compile the network that holds every operator, every second layer that can at 4 bits."""
    path = export_mixture(folder / "mixture.onnx")
    images = images_of(MIXTURE_SHAPE)
    graph = load_onnx(path)
    layers = quantizable_layers(graph)
    narrow = [layer.id for layer in layers if "w4a8" in names_of(layer)][::2]
    choices = {layer.id: W4A8 if layer.id in narrow else W8A8 for layer in layers}
    quantized = quantize(graph, calibrate(graph, images, batch_size=len(images)), choices=choices)
    out = folder / "library"
    manifest = build(
        quantized,
        out=out,
        threads=1,
        model={"path": str(path), "bytes": path.stat().st_size},
    )
    record_of(layers, choices, manifest.target["config"]).save(out / RECORD_NAME)
    return out
