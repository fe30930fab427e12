"""Runs one convolution of a peer, under emulation: ``peer.py ENGINE FILE RUNS``.

Before and after the runs, of which one comes before, it asks for its parent's number: the emulator
counts what is executed between.

ENGINE is ``onnxruntime`` (FILE is its model) or ``litert`` (FILE has the numbers, as .npz).
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np


def main() -> None:
    engine, path, runs = sys.argv[1], sys.argv[2], int(sys.argv[3])
    {"onnxruntime": run_onnxruntime, "litert": run_litert}[engine](path, runs)


def run_onnxruntime(path: str, runs: int) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    x = (np.arange(np.prod(given.shape)) % 251).astype(np.uint8).reshape(given.shape)
    measured(lambda: session.run(None, {given.name: x}), runs)


def run_litert(path: str, runs: int) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=litert_model(np.load(path)), num_threads=1)
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    x = (np.arange(np.prod(given["shape"])) % 251 - 128).astype(np.int8).reshape(given["shape"])
    interpreter.set_tensor(given["index"], x)
    measured(interpreter.invoke, runs)


def measured(run: "Callable[[], object]", runs: int) -> None:
    run()
    os.getppid()
    for _ in range(runs):
        run()
    os.getppid()


def litert_model(numbers: "np.lib.npyio.NpzFile") -> bytes:
    """Return a TFLite file of a convolution; its padding is TFLite's SAME."""
    import ai_edge_litert

    sys.path.insert(0, str(Path(ai_edge_litert.__file__).parent))
    import flatbuffers
    import schema_py_generated as schema

    weight, bias, scale = numbers["weight"], numbers["bias"], numbers["scale"]
    height, stride, step = int(numbers["height"]), int(numbers["stride"]), float(numbers["step"])
    outputs, _, _, channels = weight.shape
    model, graph = schema.ModelT(), schema.SubGraphT()
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CONV_2D
    code.version = 3
    model.version, model.description = 3, b"convolution"
    model.operatorCodes, model.buffers, model.subgraphs = [code], [schema.BufferT()], [graph]
    graph.name, graph.tensors = b"main", []

    def tensor(name, shape, dtype, scales, zero, data=None):
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, list(shape), dtype, 0
        quantization = schema.QuantizationParametersT()
        quantization.scale = [float(s) for s in np.atleast_1d(scales)]
        quantization.zeroPoint = [zero] * len(quantization.scale)
        quantization.quantizedDimension = 0
        made.quantization = quantization
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            model.buffers.append(buffer)
            made.buffer = len(model.buffers) - 1
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    signed, wide = schema.TensorType.INT8, schema.TensorType.INT32
    size = -(-height // stride)
    x = tensor(b"x", (1, height, height, channels), signed, step, -128)
    w = tensor(b"w", weight.shape, signed, scale, 0, weight)
    b = tensor(b"b", bias.shape, wide, scale * np.float32(step), 0, bias)
    y = tensor(b"y", (1, size, size, outputs), signed, step, -128)
    operator, how = schema.OperatorT(), schema.Conv2DOptionsT()
    how.padding, how.fusedActivationFunction = schema.Padding.SAME, 0
    how.strideW = how.strideH = stride
    how.dilationWFactor = how.dilationHFactor = 1
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [x, w, b], [y]
    operator.builtinOptionsType = schema.BuiltinOptions.Conv2DOptions
    operator.builtinOptions = how
    graph.operators, graph.inputs, graph.outputs = [operator], [x], [y]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


main()
