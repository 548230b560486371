"""What can go wrong with architecture strings, scores and searches."""

from hf_paraminit.errors import ParamInitError


class ArchitectureError(ParamInitError, ValueError):
    """An architecture string that cannot be read, or that describes no network; all faults in one message."""


class ScoreError(ParamInitError, ValueError):
    """A model that has no score, or settings of a score that cannot work."""
