"""Latency of QuickNet-small in Larq Compute Engine, with which no environment is shared.

It needs numpy 1, tvmquant numpy 2; so it runs by itself, in an environment of its own::

    python3.11 -m venv larq
    larq/bin/pip install larq-compute-engine==0.16.0 larq-zoo==2.4.0 tensorflow==2.15.1
    larq/bin/python benchmarks/larq_latency.py [--threads N] [--repeats N]

beside which `python -m benchmarks latency --models quicknet-small` stands. The weights are random:
its latency does not depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import time

import larq_compute_engine
import larq_zoo
import numpy as np
from larq_compute_engine.tflite.python.interpreter import Interpreter


def main() -> None:
    """Print the median and the least latency in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=40)
    given = parser.parse_args()
    network = larq_zoo.sota.QuickNetSmall(weights=None)
    model = larq_compute_engine.convert_keras_model(network)
    engine = Interpreter(model, num_threads=given.threads)
    image = np.random.default_rng(0).standard_normal((1, *network.input_shape[1:]), np.float32)
    engine.predict(image)
    times = []
    for _ in range(given.repeats):
        start = time.perf_counter()
        engine.predict(image)
        times.append(1e3 * (time.perf_counter() - start))
    median, least = statistics.median(times), min(times)
    print(f"quicknet-small, {given.threads} threads: median {median:.2f} ms, least {least:.2f} ms")


if __name__ == "__main__":
    main()
