import subprocess
import sys

import pytest

import tvmquant


@pytest.mark.parametrize("name", sorted(tvmquant.__all__))
def test_every_public_name_exists(name):
    assert getattr(tvmquant, name) is not None
    assert name in dir(tvmquant)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tvmquant.nothing


def test_functions_are_not_hidden_by_modules_of_the_same_name():
    code = """
import tvmquant.evaluation, tvmquant.calibration, tvmquant.quantization, tvmquant.simulator
import tvmquant.inspection, tvmquant.deploy.build, tvmquant.deploy.loader, tvmquant.frontend
import tvmquant
assert all(callable(getattr(tvmquant, name)) for name in tvmquant._EXPORTS)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
