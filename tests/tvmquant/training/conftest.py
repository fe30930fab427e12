import pytest

from tests.tvmquant.training import small
from tvmquant.frontend import load_onnx
from tvmquant.graph import Graph


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory):
    return small.export(tmp_path_factory.mktemp("training") / "small.onnx")


@pytest.fixture(scope="session")
def graph(model) -> Graph:
    return load_onnx(model)
