"""The numpy oracle: runs an integer (L2) graph exactly, operator by operator.

What the deployed library computes is by definition what `simulate` computes, bit for bit, wherever
the graph is integer. Values that stayed float follow the same formulas in float32, up to the
rounding of a library's exp, tanh and sums.
"""

from tvmquant.simulator.interpreter import simulate

__all__ = ["simulate"]
