"""The devices that a tracker of TVM's RPC holds under a key."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from tvmquant.errors import DeviceError

CONNECT_SECONDS = 5.0
MESSAGE_CHARACTERS = 300


@dataclass(frozen=True)
class Tracker:
    """Where devices are found, and how long to wait for them.

    Parameters
    ----------
    host, port : str, int
        Of the tracker.
    key : str
        Under which the devices registered.
    wait_seconds : float
        Longest wait for a free device.

    Notes
    -----
    TVM's RPC servers execute whatever a client sends and ask for no password: start tracker and
    servers with ``--host 127.0.0.1``, or in a network that you trust.
    """

    host: str
    port: int
    key: str
    wait_seconds: float = 300.0

    @classmethod
    def of(cls, rpc: str | Tracker | None, rpc_key: str | None = None) -> Tracker | None:
        """Return the tracker that a user names; None where none is named.

        Parameters
        ----------
        rpc : str or Tracker, optional
            ``HOST:PORT``. A tracker is returned as it is.
        rpc_key : str, optional

        Raises
        ------
        DeviceError
            If one is given without the other, or the first is not of that form.
        """
        if isinstance(rpc, Tracker):
            return rpc
        if rpc is None:
            if rpc_key is not None:
                raise DeviceError(
                    f"rpc_key = {rpc_key!r} without a tracker; pass rpc=HOST:PORT too"
                )
            return None
        host, _, port = rpc.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise DeviceError(f"rpc = {rpc!r}; expected HOST:PORT such as 127.0.0.1:9190")
        if not rpc_key:
            raise DeviceError("a tracker needs the key of its devices; pass rpc_key (--rpc-key)")
        return cls(host, int(port), rpc_key)

    @property
    def address(self) -> str:
        """``HOST:PORT``."""
        return f"{self.host}:{self.port}"

    @property
    def name(self) -> str:
        """Of the devices, as records of measurements name them."""
        return f"rpc:{self.key}"

    def connect(self) -> Any:
        """Return a connection to the tracker.

        Raises
        ------
        OSError
            If it does not answer.
        """
        from tvm import rpc

        # TVM itself would try again for minutes
        socket.create_connection((self.host, self.port), CONNECT_SECONDS).close()
        return rpc.connect_tracker(self.host, self.port)

    def request(self, session_seconds: int) -> Any:
        """Return a session with the first device that is free; waits for it without limit.

        Parameters
        ----------
        session_seconds : int
            After which the device ends the session.
        """
        return self.connect().request(self.key, session_timeout=session_seconds)

    def devices(self) -> int:
        """Return the number of devices under the key.

        Raises
        ------
        DeviceError
            If the tracker does not answer, or there are none.
        """
        try:
            servers = self.connect().summary()["server_info"]
        except (OSError, RuntimeError, ValueError) as error:
            raise DeviceError(
                f"no RPC tracker answers at {self.address} ({last_line(error)}); start one with "
                f"`python -m tvm.exec.rpc_tracker --host 127.0.0.1 --port {self.port}`"
            ) from None
        keys = [str(server["key"]).partition(":")[2] for server in servers]
        if self.key not in keys:
            raise DeviceError(
                f"the RPC tracker at {self.address} holds no device of key {self.key!r} (found: "
                f"{', '.join(sorted(set(keys))) or 'none'}); start one with `python -m "
                f"tvm.exec.rpc_server --host ... --tracker {self.address} --key {self.key}`"
            )
        return keys.count(self.key)


def last_line(error: object) -> str:
    """Return the decisive line of a message that may carry a traceback."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip()[-MESSAGE_CHARACTERS:] if lines else type(error).__name__
