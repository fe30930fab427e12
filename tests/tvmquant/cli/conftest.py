import json

import pytest
from typer.testing import CliRunner

from tvmquant.cli.app import app


class Outcome:
    """How a command ended."""

    def __init__(self, result):
        self.code = result.exit_code
        self.stdout = result.stdout
        # What wraps in a narrow terminal is joined again.
        self.stderr = " ".join(result.stderr.split())
        self.exception = result.exception

    def json(self):
        """Return the one document on stdout."""
        return json.loads(self.stdout)


@pytest.fixture
def tvmquant():
    """Return a function that runs a command line in this process."""

    def run(*arguments, code=0):
        outcome = Outcome(CliRunner().invoke(app, [str(a) for a in arguments]))
        assert outcome.code == code, (outcome.stdout, outcome.stderr, outcome.exception)
        return outcome

    return run
