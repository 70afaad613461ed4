"""Loggers that cost nothing before their first message: `logging` takes 4 ms to import, and few programs hear a word of it."""

from __future__ import annotations

__all__ = ["Log"]


class Log:
    """What the package says to `logging.getLogger(name)`.

    Args:
        name: of the module.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def debug(self, message: str, *arguments: object, exc_info: bool = False) -> None:
        """For whoever looks into what happens."""
        import logging

        logging.getLogger(self.name).debug(message, *arguments, exc_info=exc_info, stacklevel=2)

    def warning(self, message: str, *arguments: object) -> None:
        """For whoever runs the program."""
        import logging

        logging.getLogger(self.name).warning(message, *arguments, stacklevel=2)
