"""Calibration of small networks: ranges, groups, errors, and the file."""

import json
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from tvm import relax, tirx

from tests.tvmquant.twin.graphs import fake_quant, graph, small_network
from tvmquant.calibration import Calibration, calibrate, model_fingerprint
from tvmquant.calibration.base import MinMaxObserver
from tvmquant.data import open_data
from tvmquant.errors import DataError, QuantizationError, UnsupportedModelError
from tvmquant.graph import Graph
from tvmquant.twin import Twin

EDGES = {
    "left": {"group": "both"},
    "right": {"group": "both"},
    "logits": {"role": "output", "format": "int16", "scheme": "symmetric"},
}
ITEMS = np.random.default_rng(5).normal(0, 1, (20, 3, 8, 8)).astype(np.float32)


def annotated(module: tvm.IRModule) -> Graph:
    return Graph(module, "L1", "network", ("x",), ("y",))


def fingerprint_of(module: tvm.IRModule) -> str:
    return model_fingerprint(annotated(module))


def activations(items: np.ndarray = ITEMS) -> dict[str, np.ndarray]:
    seen: dict[str, np.ndarray] = {}
    twin = Twin(small_network(), observe=lambda name, t: seen.update({name: t.detach().numpy()}))
    twin(torch.from_numpy(items))
    return seen


class TestRanges:
    def test_minmax_of_all_batches(self) -> None:
        result = calibrate(small_network(), ITEMS, method="minmax", batch_size=3)
        seen = activations()
        assert set(result.edges) == set(seen)
        for name, tensor in seen.items():
            assert result.ranges()[name] == pytest.approx((tensor.min(), tensor.max()), rel=1e-5)
            assert result.edges[name].samples == tensor.size
            assert result.edges[name].method == "minmax"
        assert result.count == len(ITEMS)
        assert result.data == open_data(ITEMS).fingerprint()

    def test_members_of_a_group_keep_their_ranges(self) -> None:
        alone = calibrate(small_network(), ITEMS, method="minmax").ranges()
        assert calibrate(small_network(**EDGES), ITEMS, method="minmax").ranges() == alone

    def test_outputs_are_not_clipped(self) -> None:
        result = calibrate(small_network(**EDGES), ITEMS, method="percentile", percentile=90.0)
        assert result.edges["logits"].method == "minmax"
        assert result.edges["relu"].method == "percentile"
        logits = activations()["logits"]
        assert result.ranges()["logits"] == pytest.approx((logits.min(), logits.max()), rel=1e-5)

    def test_percentile_option_clips(self) -> None:
        wide = calibrate(small_network(), ITEMS, method="percentile", percentile=99.99)
        narrow = calibrate(small_network(), ITEMS, method="percentile", percentile=90.0)
        assert narrow.edges["relu"].hi < 0.9 * wide.edges["relu"].hi

    def test_threshold_depends_on_bits(self) -> None:
        """The best clip of 4 bits is tighter than that of 8."""
        low = calibrate(small_network(input={"format": "uint4"}), ITEMS, method="mse")
        high = calibrate(small_network(), ITEMS, method="mse")
        assert low.edges["input"].hi < high.edges["input"].hi

    def test_weights_and_calibrated_edges_are_not_observed(self) -> None:
        module = small_network(relu={"scale": 0.1}, left={"role": "weight"})
        assert set(calibrate(module, ITEMS).edges) == {"input", "right", "logits"}

    def test_limit(self) -> None:
        result = calibrate(small_network(), ITEMS, method="minmax", limit=4)
        assert result.count == 4
        assert result.edges["input"].hi == ITEMS[:4].max()

    def test_graph_object(self) -> None:
        module = small_network()
        assert calibrate(annotated(module), ITEMS) == calibrate(module, ITEMS)

    def test_does_not_depend_on_batches(self) -> None:
        def of(batch_size: int) -> dict[str, tuple[float, float]]:
            return calibrate(small_network(), ITEMS, batch_size=batch_size).ranges()

        for name, (lo, hi) in of(20).items():
            assert of(7)[name] == pytest.approx((lo, hi), rel=1e-3)


class TestRun:
    def test_one_update_per_edge_and_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes: Counter[tuple[int, ...]] = Counter()
        update = MinMaxObserver.update

        def counting(self: MinMaxObserver, array: np.ndarray) -> None:
            sizes[array.shape] += 1
            update(self, array)

        monkeypatch.setattr(MinMaxObserver, "update", counting)
        calibrate(small_network(), ITEMS, method="minmax", batch_size=5)
        assert sizes == {
            (5, 3, 8, 8): 4,
            (5, 4, 8, 8): 8,  # "relu" and "left"
            (5, 2, 8, 8): 4,
            (5, 5): 4,
        }

    def test_progress(self) -> None:
        calls: list[tuple[int, int | None]] = []
        calibrate(small_network(), ITEMS, batch_size=8, progress=lambda *c: calls.append(c))
        assert calls == [(8, 20), (16, 20), (20, 20)]

    def test_progress_of_a_generator(self) -> None:
        calls: list[tuple[int, int | None]] = []
        result = calibrate(small_network(), iter(ITEMS), progress=lambda *c: calls.append(c))
        assert calls == [(16, None), (20, None)]
        assert result.data is None

    def test_memory_is_flat(self) -> None:
        def items(count: int) -> Iterator[np.ndarray]:
            rng = np.random.default_rng(0)
            for _ in range(count):
                yield rng.normal(0, 1, (3, 8, 8)).astype(np.float32)

        def peak(count: int) -> int:
            tracemalloc.start()
            calibrate(small_network(), items(count), batch_size=8)
            result = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return result

        peak(8)
        assert peak(320) < 1.2 * peak(32)

    def test_interrupt_passes(self) -> None:
        def progress(done: int, _total: int | None) -> None:
            if done > 8:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            calibrate(small_network(), ITEMS, batch_size=8, progress=progress)


class TestListsOfBatches:
    @pytest.mark.parametrize("labelled", [False, True])
    def test_same_ranges_as_the_items(self, labelled: bool) -> None:
        batches = [ITEMS[:5], ITEMS[5:12]]
        data = [(batch, np.zeros(len(batch), int)) for batch in batches] if labelled else batches
        found = calibrate(small_network(), data)
        assert found.count == 12
        assert found.edges == calibrate(small_network(), ITEMS[:12]).edges


class TestFixedBatch:
    @pytest.mark.parametrize("count", [3, 8, 10])
    def test_runs_in_batches_of_that_size(self, count: int) -> None:
        def body(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
            return builder.emit(fake_quant(builder.emit(relax.op.nn.relu(x)), "/r/Relu"))

        data = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
        found = calibrate(graph((4, 3), body), data, method="minmax")
        assert found.count == count
        assert (found.edges["/r/Relu"].lo, found.edges["/r/Relu"].hi) == (0.0, data.max())

    def test_items_of_another_shape_are_refused(self) -> None:
        with pytest.raises(DataError, match=r"shape \(2,\), but .* input 'x' takes \(3\)"):
            calibrate(graph((4, 3), lambda _b, x: relax.op.nn.relu(x)), np.ones((6, 2), "f4"))


class TestErrors:
    def test_empty_data(self) -> None:
        with pytest.raises(DataError, match="at least one item"):
            calibrate(small_network(), ITEMS[:0])
        with pytest.raises(DataError, match="yields nothing"):
            calibrate(small_network(), iter(()))

    def test_wrong_shape(self) -> None:
        with pytest.raises(DataError, match=r"\(1, 8, 8\), but .* input 'x' takes \(3, 8, 8\)"):
            calibrate(small_network(), ITEMS[:, :1])

    def test_activation_that_is_nan_names_the_edge(self) -> None:
        def body(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
            return builder.emit(fake_quant(builder.emit(relax.op.sqrt(x)), "/root/Sqrt"))

        with pytest.raises(DataError, match=r"tensor '/root/Sqrt'.*NaN"):
            calibrate(graph((4, 3), body), np.full((4, 3), -1, np.float32))

    def test_unknown_method_and_option(self) -> None:
        with pytest.raises(QuantizationError, match="'kl' is unknown"):
            calibrate(small_network(), ITEMS, method="kl")
        with pytest.raises(QuantizationError, match="no option percentile"):
            calibrate(small_network(), ITEMS, method="minmax", percentile=99.0)

    def test_unknown_operator(self) -> None:
        with pytest.raises(UnsupportedModelError, match=r"relax\.tril"):
            calibrate(graph((4, 3), lambda _b, x: relax.op.tril(x)), np.zeros((4, 3), np.float32))

    def test_one_array_for_several_inputs(self) -> None:
        with pytest.raises(DataError, match=r"model has 2 inputs \('x', 'y'\)"):
            calibrate(difference((None, 3)), ITEMS)


def difference(shape: tuple[int | None, int]) -> tvm.IRModule:
    """Return x - y, its result observed."""
    builder = relax.BlockBuilder()
    batch, extent = shape
    extents = [tirx.Var("N", "int64") if batch is None else batch, extent]
    x, y = (relax.Var(name, relax.TensorType(extents, "float32")) for name in "xy")
    with builder.function("main", [x, y]):
        with builder.dataflow():
            result = builder.emit(relax.op.subtract(x, y))
            out = builder.emit_output(fake_quant(result, "difference"))
        builder.emit_func_output(out)
    return builder.get()


class TestInputs:
    X = np.arange(15, dtype=np.float32).reshape(5, 3)

    def test_several_inputs_are_fed_together(self) -> None:
        found = calibrate(difference((None, 3)), {"y": 2 * self.X, "x": self.X}, method="minmax")
        assert (found.edges["difference"].lo, found.edges["difference"].hi) == (-14.0, 0.0)

    def test_what_fills_up_a_fixed_batch_is_not_observed(self) -> None:
        data = {"x": self.X, "y": 0 * self.X}
        fixed = calibrate(difference((4, 3)), data, method="minmax")
        free = calibrate(difference((None, 3)), data, method="minmax")
        assert fixed.edges["difference"] == free.edges["difference"]
        assert fixed.edges["difference"].samples == self.X.size
        assert fixed.count == 5

    def test_batches_of_a_list(self) -> None:
        batches = [{"x": self.X[:3], "y": self.X[:3]}, {"x": self.X[3:], "y": self.X[3:]}]
        assert calibrate(difference((None, 3)), batches).count == 5


class TestFingerprint:
    def test_same_for_equal_graphs(self) -> None:
        assert fingerprint_of(small_network()) == fingerprint_of(small_network())

    def test_bits_and_scales_do_not_enter(self) -> None:
        other = small_network(relu={"format": "uint4", "scale": 0.5}, left={"scheme": "symmetric"})
        assert fingerprint_of(other) == fingerprint_of(small_network())

    @pytest.mark.parametrize(
        "other", [lambda: small_network(seed=1), lambda: small_network(relu={"id": "relu2"})]
    )
    def test_weights_and_edges_enter(self, other: Callable[[], Any]) -> None:
        assert fingerprint_of(other()) != fingerprint_of(small_network())

    def test_attributes_enter(self) -> None:
        def pooled(size: int) -> str:
            return fingerprint_of(
                graph((1, 2, 8, 8), lambda _b, x: relax.op.nn.max_pool2d(x, [2, size], [2, 2]))
            )

        assert pooled(1) != pooled(2)


class TestFile:
    @pytest.fixture
    def calibration(self) -> Calibration:
        return calibrate(small_network(**EDGES), ITEMS, method="percentile")

    def test_round_trip(self, calibration: Calibration, tmp_path: Path) -> None:
        path = tmp_path / "calibration.json"
        calibration.save(path)
        calibration.save(path)
        assert Calibration.load(path) == calibration
        assert [p.name for p in tmp_path.iterdir()] == ["calibration.json"]

    def test_belongs_to_its_model(self, calibration: Calibration) -> None:
        calibration.check_model(annotated(small_network(**EDGES)))
        with pytest.raises(DataError, match="belongs to another model"):
            calibration.check_model(annotated(small_network(seed=1)))

    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
    def test_interrupted_save_keeps_the_old_file(
        self,
        calibration: Calibration,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
    ) -> None:
        path = tmp_path / "calibration.json"
        path.write_text("old")

        def half_written(self: Path, text: str, **_kwargs: Any) -> None:
            self.write_bytes(text[:100].encode())
            raise error

        monkeypatch.setattr(Path, "write_text", half_written)
        with pytest.raises((KeyboardInterrupt, DataError)):
            calibration.save(path)
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["calibration.json"]

    def test_save_into_missing_folder(self, calibration: Calibration, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="cannot be written"):
            calibration.save(tmp_path / "missing" / "calibration.json")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"schema_version": 1}, "schema_version = 1; this version of tvmquant reads 3"),
            ({"count": 0}, "count = 0"),
            ({"model": None}, "model = None"),
            ({"extra": 1}, "extra = 1"),
            ({"edges": {"relu": {"lo": 0.0, "hi": 1.0, "method": "mse"}}}, r"edges\.relu\.samples"),
            (
                {"edges": {"relu": {"lo": 2.0, "hi": 1.0, "method": "mse", "samples": 1}}},
                r"edges\.relu .*lo = 2.0 exceeds hi = 1.0",
            ),
            (
                {"edges": {"relu": {"lo": float("nan"), "hi": 1, "method": "mse", "samples": 1}}},
                r"edges\.relu\.lo = nan",
            ),
        ],
    )
    def test_wrong_field(
        self, calibration: Calibration, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        path = tmp_path / "calibration.json"
        path.write_text(json.dumps(json.loads(calibration.model_dump_json()) | change))
        with pytest.raises(DataError, match=message):
            Calibration.load(path)

    @pytest.mark.parametrize("content", ["", "{", "[1]", "\ufeff"])
    def test_not_a_calibration(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "calibration.json"
        path.write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=r"calibration\.json"):
            Calibration.load(path)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="cannot be read"):
            Calibration.load(tmp_path / "calibration.json")
