"""Everything vqaloop raises on purpose; each message says what, where and what to do.

::

    VqaloopError
    ├── InputError           the source, an option or a file was refused (exit 2)
    │   └── EncoderMissing   this ffmpeg cannot run the encoder that was asked for
    ├── ToolError            a program we called failed
    │   ├── EncodeFailed     an encoder crashed, hung or wrote something undecodable
    │   └── DecodeFailed     a file could not be decoded to the end
    ├── TargetUnreachable    the work was done and the answer is no (exit 1)
    └── Cancelled            the work was called off through a Job (130)
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
    """A program failed; the message ends with its last words."""


class EncodeFailed(ToolError):
    """One encode crashed, hung, or wrote a stream that does not decode.

    `again`: what happened may have been chance, so that another attempt makes sense.
    """

    def __init__(self, message: str, *, again: bool = False) -> None:
        super().__init__(message)
        self.again = again


class DecodeFailed(ToolError):
    """A file could not be decoded, or held fewer frames than it should."""


class TargetUnreachable(VqaloopError):
    """All went well and the answer is no: too few rungs, a target out of reach."""

    exit_code = 1


class Cancelled(VqaloopError):
    """The work was called off by the program that asked for it."""

    exit_code = 130


class CalledOff(KeyboardInterrupt):
    """Cancelled, as the work itself sees it: an interruption, cleaned up after like Ctrl-C."""
