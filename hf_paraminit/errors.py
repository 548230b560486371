"""Every exception the package raises on purpose.

Each class is a `ParamInitError` and also the builtin that fits, so callers can catch either. A message says what was
attempted, on which parameter or file, what was expected against what was found, and the way out.
"""


class ParamInitError(Exception):
    """Base of all errors that a user of the package can cause."""


class UnknownInitializerError(ParamInitError, ValueError):
    """An initializer name, variant or source that nothing is registered for."""


class InitializerConfigError(ParamInitError, ValueError):
    """Arguments that an initializer does not take, or values it cannot use (`init_kwargs`)."""


class TrainingConfigError(ParamInitError, ValueError):
    """Settings of a training run or of its data that cannot work."""


class DuplicateInitializerError(ParamInitError, ValueError):
    """A name or alias that is already registered by another initializer."""


class PredictionError(ParamInitError, ValueError):
    """Predicted values that do not fit the model: unknown names, wrong shapes, dtypes, NaN or infinity."""


class TracingError(ParamInitError, RuntimeError):
    """A model whose computational graph could not be read."""


class CheckpointError(ParamInitError, ValueError):
    """A checkpoint file that is damaged, of an unknown layout, or does not fit the network it is loaded into."""


class UnsafeFileError(CheckpointError):
    """A file that asks for code to be run, or exceeds the declared bounds. Nothing of it was executed."""


class PredictorNotFoundError(ParamInitError, OSError):
    """A predictor that is neither a local path, nor cached, nor reachable on the Hub."""


class MissingDependencyError(ParamInitError, ImportError):
    """An optional package that the requested feature needs; the message names the extra to install."""


class OutputError(ParamInitError, OSError):
    """A result that could not be written (no space, no permission); nothing partial is left behind."""
