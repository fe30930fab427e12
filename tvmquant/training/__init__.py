"""Training of networks whose layers compute in integers, on the twin of the graph that ships."""

from tvmquant.training.recipe import Recipe
from tvmquant.training.trained import Trained, train

__all__ = ["Recipe", "Trained", "train"]
