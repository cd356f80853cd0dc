"""Reading a decoded JSON document field by field, with an error that names the place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drl.runtime.errors import BundleError, DrlError, shorten


@dataclass(frozen=True)
class Document:
    """What a message says of a document.

    Attributes:
        name: Its file.
        repair: The command that makes it anew.
        error: What is raised.
    """

    name: str
    repair: str
    error: type[DrlError] = BundleError

    def wrong(self, place: str, label: str, value: object) -> DrlError:
        """An error that says what the value at `place` must be."""
        return self.error(
            f"{self.name}: {place} must be {label}, not {shorten(value)}; {self.repair}"
        )


class Fields:
    """A JSON object whose fields are read with a type check."""

    def __init__(self, document: Document, value: object, place: str = "") -> None:
        if not isinstance(value, dict):
            raise document.wrong(place or "the document", "an object", value)
        self.document = document
        self.items: dict[str, Any] = value
        self.place = place

    def at(self, name: str) -> str:
        """Where a field lies in the document, as `graphs.encoder.file`."""
        return f"{self.place}.{name}" if self.place else name

    def get(self, name: str, kind: type | tuple[type, ...], label: str) -> Any:
        """A field of a type. Only where `kind` is `bool` does a truth value count as one."""
        if name not in self.items:
            raise self.document.error(
                f"{self.document.name} has no {self.at(name)}; {self.document.repair}"
            )
        value = self.items[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.document.wrong(self.at(name), label, value)
        return value

    def integer(self, name: str, minimum: int = 0) -> int:
        """An integer of at least `minimum`."""
        value: int = self.get(name, int, "an integer")
        if value < minimum:
            raise self.document.wrong(self.at(name), f"at least {minimum}", value)
        return value

    def number(self, name: str) -> float:
        """An integer or a fraction, as far as a float goes."""
        value = self.get(name, (int, float), "a number")
        try:
            return float(value)
        except OverflowError:
            raise self.document.wrong(self.at(name), "a number that floats reach", value) from None

    def share(self, name: str) -> float:
        """A number from 0 to 1."""
        value = self.get(name, (int, float), "a number")
        if not 0 <= value <= 1:
            raise self.document.wrong(self.at(name), "a number from 0 to 1", value)
        return float(value)

    def truth(self, name: str) -> bool:
        """A truth value."""
        value: bool = self.get(name, bool, "true or false")
        return value

    def text(self, name: str) -> str:
        """A string."""
        value: str = self.get(name, str, "a string")
        return value

    def array(self, name: str) -> list[Any]:
        """A list of anything."""
        value: list[Any] = self.get(name, list, "an array")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of integers of at least 0."""
        values = self.array(name)
        if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in values):
            raise self.document.wrong(self.at(name), "an array of whole numbers", values)
        return tuple(values)

    def object(self, name: str) -> "Fields":
        """An object."""
        return Fields(self.document, self.get(name, dict, "an object"), self.at(name))

    def objects(self, name: str) -> tuple["Fields", ...]:
        """A list of objects."""
        return tuple(
            Fields(self.document, item, f"{self.at(name)}[{index}]")
            for index, item in enumerate(self.array(name))
        )

    def named(self, name: str) -> Mapping[str, "Fields"]:
        """An object of objects."""
        fields = self.object(name)
        return {key: fields.object(key) for key in fields.items}

    def texts(self, name: str) -> Mapping[str, str]:
        """An object of strings."""
        fields = self.object(name)
        return {key: fields.text(key) for key in fields.items}
