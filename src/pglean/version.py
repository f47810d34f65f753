"""The version of this program."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("pglean")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
