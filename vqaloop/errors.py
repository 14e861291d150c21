"""Exceptions of vqaloop; each message says what is wrong, where, and what to do.

::

    VqaloopError
    ├── InputError           the source, an option or a file was refused (exit 2)
    │   └── EncoderMissing   this ffmpeg cannot run the requested encoder
    ├── ToolError            a program we called failed
    │   ├── EncodeFailed     an encoder crashed, hung or wrote something undecodable
    │   └── DecodeFailed     a file could not be decoded to the end
    ├── TargetUnreachable    no encode meets the request (exit 1)
    └── Cancelled            the work was cancelled through a Job (130)
"""


class VqaloopError(Exception):
    """Base of all errors meant for people; `str(error)` is the whole message."""

    exit_code = 2


class InputError(VqaloopError, ValueError):
    """The input or an option was refused before any work was done."""

    options: tuple[str, ...] = ()
    """Arguments at fault, as far as that is known."""


class EncoderMissing(InputError):
    """The ffmpeg in use cannot run this encoder."""


class ToolError(VqaloopError, RuntimeError):
    """A program failed; the message ends with the end of its output."""


class EncodeFailed(ToolError):
    """One encode crashed, hung, or wrote a stream that does not decode.

    Attributes:
        again: Whether the fault may be transient, so that another attempt makes sense.
    """

    def __init__(self, message: str, *, again: bool = False) -> None:
        super().__init__(message)
        self.again = again


class DecodeFailed(ToolError):
    """A file could not be decoded, or held fewer frames than it should."""


class TargetUnreachable(VqaloopError):
    """No encode meets the request: too few rungs, or the target is out of range."""

    exit_code = 1


class Cancelled(VqaloopError):
    """The work was cancelled by the program that started it."""

    exit_code = 130


class CalledOff(KeyboardInterrupt):
    """Cancelled, as the work itself sees it: an interruption, cleaned up after like Ctrl-C."""
