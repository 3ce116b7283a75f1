"""Every error this package raises on purpose. Each message says what is wrong and how to mend it."""

from __future__ import annotations


class InterpError(Exception):
    """Base class: the command line prints it as one line and exits with 1."""


class InterpWarning(UserWarning):
    """Something in an input that was left out; the command line prints it as one note."""


class UnknownFamily(InterpError):
    """A ``model_type`` for which no anatomy file exists."""


class UndescribedWriter(InterpError):
    """A parameter that the family's anatomy names neither as a writer nor as a reader."""


class ModelNotFound(InterpError):
    """A model that cannot be opened: missing wheel, directory without weights, gated or offline id."""


class PromptError(InterpError):
    """A prompt file or data set that cannot be read, or sets too small to split."""


class NotExpressible(InterpError):
    """An operator that has no exact weight form at the place where it was put."""


class DeltaError(InterpError):
    """A weight delta that does not fit its base, matches nothing, or is damaged."""


class ExportError(InterpError):
    """A format that cannot hold an update, or an export that did not verify."""


class NoDirection(InterpError, ValueError):
    """A difference that is zero or not finite: it has no direction."""


class SiteError(InterpError):
    """A residual-stream site outside the model, or one that a backend cannot reach."""


class RecordError(InterpError):
    """A figure record that is damaged, contradicts itself, or that no renderer can draw."""


class NotFinite(InterpError):
    """NaN or infinity where a model should give numbers: an overflow, or damaged weights."""


class JudgeError(InterpError):
    """A judge that is unknown, lacks what it needs, or whose server does not answer."""


class PersonaError(InterpError):
    """A trait that is not whole, or an extraction that gives no persona vector."""
