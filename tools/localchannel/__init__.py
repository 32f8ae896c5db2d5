"""A conda channel made on this machine: real packages from CPython, Debian's libraries and PyPI's wheels.

For tests and the demo where no channel on the internet can be reached. See docs/local-channel.md.
"""
