"""An OpenAI-compatible server for one causal language model."""

__version__ = "0.1.0"
