"""How a user names the devices of a tracker."""

import pytest

from tvmquant.devices.tracker import Tracker, last_line
from tvmquant.errors import DeviceError


def test_a_tracker_is_named_by_address_and_key():
    assert Tracker.of(None) is None
    tracker = Tracker.of("board.local:9190", "pi4")
    assert (tracker.host, tracker.port, tracker.key) == ("board.local", 9190, "pi4")
    assert (tracker.address, tracker.name) == ("board.local:9190", "rpc:pi4")
    assert Tracker.of(tracker) is tracker


@pytest.mark.parametrize(
    ("rpc", "key", "message"),
    [
        (None, "pi4", "'pi4' without a tracker"),
        ("9190", "pi4", "expected HOST:PORT"),
        (":9190", "pi4", "expected HOST:PORT"),
        ("board:port", "pi4", "expected HOST:PORT"),
        ("board:65536", "pi4", "expected HOST:PORT"),
        ("board:9190", None, r"needs the key of its devices; pass rpc_key \(--rpc-key\)"),
        ("board:9190", "", "needs the key"),
    ],
)
def test_what_is_wrong_is_told(rpc, key, message):
    with pytest.raises(DeviceError, match=message):
        Tracker.of(rpc, key)


@pytest.mark.parametrize(
    ("error", "line"),
    [("Traceback\n  File x\nRPCError: no\n\n", "RPCError: no"), (ValueError(), "ValueError")],
)
def test_of_a_traceback_the_last_line_counts(error, line):
    assert last_line(error) == line
