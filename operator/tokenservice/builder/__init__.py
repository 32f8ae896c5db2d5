"""Makes OCI images without Docker: base root file system, Python environments, layers, and the push to a registry.

Runs on a developer's machine and in build Jobs. The manager never imports it.
"""
