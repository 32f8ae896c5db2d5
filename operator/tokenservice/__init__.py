"""tokenservice-operator: the environment is part of the resource."""

__version__ = "0.1.0"
