"""Processes that torchrun starts train the network that one process trains."""

import os
import subprocess
import sys

import numpy as np
import torch
from typer.testing import CliRunner

from tests.tvmquant.training import small
from tvmquant.cli.app import app
from tvmquant.training import distributed

OPTIONS = [
    "--choice", "w4a4", "--set", "epochs=2", "--set", "batch_size=32",
    "--set", "batch_norm=frozen", "--set", "augmentation.shift=1",
    "--set", "augmentation.mixup=0.2", "--threads", "1",
]  # fmt: skip
TORCHRUN = [
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
    "-m", "tvmquant",
]  # fmt: skip


def test_two_processes_train_what_one_does(model, tmp_path) -> None:
    images, labels = small.data()
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    data = str(tmp_path / "data.npz")
    command = ["train", str(model), "--data", data, "--validation", data, *OPTIONS, "-o"]
    alone = CliRunner().invoke(app, [*command, str(tmp_path / "one")])
    assert alone.exit_code == 0, alone.stderr
    ended = subprocess.run(
        [*TORCHRUN, *command, str(tmp_path / "two")], env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True, capture_output=True, check=False, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = {}
    for name, stderr in (("one", alone.stderr), ("two", ended.stderr)):
        assert stderr.count("epoch 2: loss") == 1  # one of them reports
        assert (tmp_path / name / "trained.onnx").is_file()
        found[name] = torch.load(tmp_path / name / "checkpoint.pt")
    one, two = found["one"], found["two"]
    for name, value in one["twin"].items():
        torch.testing.assert_close(two["twin"][name], value, rtol=1e-6, atol=1e-6, msg=name)
    for first, second in zip(one["history"], two["history"], strict=True):
        assert abs(first["loss"] - second["loss"]) < 1e-6
        assert first["top1_training"] == second["top1_training"]
        assert first["top1"] == second["top1"]


def test_each_process_has_a_gpu_of_its_own(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr("torch.cuda.set_device", calls.append)
    monkeypatch.setattr(
        "torch.distributed.init_process_group", lambda backend, **_: calls.append(backend)
    )
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.empty", lambda *_, device: None)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    for name in (None, "cuda"):
        assert distributed.chosen_device(name) == torch.device("cuda", 3)
    assert distributed.chosen_device("cuda:1") == torch.device("cuda", 1)
    distributed.join(torch.device("cuda", 3))
    assert calls == [torch.device("cuda", 3), "nccl"]
