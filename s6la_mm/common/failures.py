"""Work on many files, of which a bad one spoils only itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .cli import explain


class Failures:
    """Goes on where one of many things fails, and names at the end what did.

    Example:
        >>> from s6la_mm.common.errors import UsageError
        >>> failures = Failures()
        >>> for path in ('a.jpg', 'b.jpg'):
        ...     with failures.of(path):
        ...         if path == 'b.jpg':
        ...             raise UsageError('b.jpg is empty')
        >>> failures.succeeded, failures.messages
        (1, ['b.jpg is empty'])
    """

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.succeeded = 0
        self._unexpected: Exception | None = None

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Notes an error in the block, which ends there.

        Args:
            name (str): What it is about; the message begins with it unless it names it anyway.
        """
        try:
            yield
        except SystemExit as error:  # of clear_errors
            if not isinstance(error.code, str):
                raise
            self._note(name, error.code.removeprefix('error: '))
        except Exception as error:
            message = explain(error)
            if message is None and not isinstance(error, OSError):
                self._unexpected = self._unexpected or error
            self._note(name, message or f'{type(error).__name__}: {error}')
        else:
            self.succeeded += 1

    def _note(self, name: str, message: str) -> None:
        self.messages.append(message if name in message else f'{name}: {message}')

    def end(self) -> None:
        """Ends the tool if something failed.

        Raises:
            SystemExit: With status 1, after the messages.
            Exception: If nothing succeeded, the first error that is none of the files: it is one of the model or of
                this package, and its traceback says where.
        """
        if self._unexpected is not None and not self.succeeded:
            raise self._unexpected
        if len(self.messages) == 1 and not self.succeeded:
            raise SystemExit(f'error: {self.messages[0]}')
        if self.messages:
            print(f'{len(self.messages)} of {len(self.messages) + self.succeeded} failed:', file=sys.stderr)
            print('\n'.join(f'  {message}' for message in self.messages), file=sys.stderr)
            raise SystemExit(1)
