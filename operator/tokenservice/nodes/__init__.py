"""Nodes: which of them can take pods, and bringing images to them."""
