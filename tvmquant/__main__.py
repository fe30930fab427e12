"""``python -m tvmquant``: the command line, for what starts modules, such as torchrun."""

from __future__ import annotations

from tvmquant.cli.app import main

if __name__ == "__main__":
    main()
