"""A foreign `config.json`, read option by option, with every problem noted."""

from collections.abc import Mapping, Sequence
from typing import Any

from drl.runtime.errors import ConfigError


class Options:
    """The options of a foreign configuration. Problems are collected; `finish` raises them all."""

    def __init__(self, values: Mapping[str, Any], family: str) -> None:
        self._values = values
        self._family = family
        self._problems: list[str] = []

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number; without a default it must be there."""
        return self._typed(name, (int, float), "a number", default, 1.0)

    def integer(self, name: str, default: int | None = None) -> int:
        """Return a whole number; without a default it must be there."""
        return self._typed(name, int, "a whole number", default, 1)

    def flag(self, name: str, default: bool) -> bool:
        """Return a truth value."""
        return self._typed(name, bool, "true or false", default, default)

    def choice(self, name: str, choices: Mapping[str, Any], default: str | None = None) -> Any:
        """Return what one of several words stands for."""
        value = self._values.get(name, default)
        if value in choices:
            return choices[value]
        known = ", ".join(sorted(choices))
        self._problems.append(f"`{name}` is {value!r}; {self._family} models here may have {known}")
        return next(iter(choices.values()))

    def get(self, name: str, default: Any = None) -> Any:
        """Return an option as it stands."""
        return self._values.get(name, default)

    def refuse(self, name: str, unless: Sequence[Any], why: str, default: Any = None) -> None:
        """Note a problem unless the option has one of the values that are supported."""
        value = self._values.get(name, default)
        if value not in unless:
            self._problems.append(f"`{name}` is {value!r}, {why}")

    def problem(self, text: str) -> None:
        """Note a problem."""
        self._problems.append(text)

    def finish(self) -> None:
        """Raise `ConfigError` with all problems, if there are any."""
        if self._problems:
            raise ConfigError(f"{self._family} configuration: {'; '.join(self._problems)}")

    def _typed(self, name: str, kind: Any, label: str, default: Any, stand_in: Any) -> Any:
        value = self._values.get(name)
        if value is None:
            value = default
        if value is None:
            self._problems.append(f"`{name}` is missing")
            return stand_in
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self._problems.append(f"`{name}` is {value!r}, not {label}")
            return stand_in
        return value
