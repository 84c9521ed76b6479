"""Where records come from: built-in sets, folders and hub names, and users' own functions."""

from simulations.data.dataset import Dataset
from simulations.data.load import load_dataset

__all__ = ["Dataset", "load_dataset"]
