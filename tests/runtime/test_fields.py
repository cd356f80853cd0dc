"""Reading documents field by field."""

import pytest

from drl.runtime.errors import BundleError, ConfigError
from drl.runtime.fields import Document, Fields

DOCUMENT = Document("thing.json", "make it again")
CONTENT = {
    "count": 3,
    "share": 0.5,
    "flag": True,
    "name": "x",
    "list": [1, 2],
    "inner": {"name": 1},
    "items": [{"a": 1}, {"b": 2}],
    "words": {"k": "v"},
}


def fields() -> Fields:
    return Fields(DOCUMENT, CONTENT)


def test_every_kind_is_read() -> None:
    found = fields()
    assert found.integer("count") == 3
    assert found.number("share") == 0.5
    assert found.number("count") == 3.0
    assert found.truth("flag") is True
    assert found.text("name") == "x"
    assert found.array("list") == [1, 2]
    assert found.integers("list") == (1, 2)
    assert found.object("inner").integer("name") == 1
    assert [item.items for item in found.objects("items")] == [{"a": 1}, {"b": 2}]
    assert found.texts("words") == {"k": "v"}
    assert list(Fields(DOCUMENT, {"all": {"a": {"b": 1}}}).named("all")) == ["a"]


@pytest.mark.parametrize(
    ("method", "name", "message"),
    [
        ("text", "nothing", "thing.json has no nothing; make it again"),
        ("text", "count", "thing.json: count must be a string, not 3; make it again"),
        ("integer", "flag", "thing.json: flag must be an integer, not True"),
        ("integer", "share", "share must be an integer, not 0.5"),
        ("number", "flag", "flag must be a number, not True"),
        ("truth", "count", "count must be true or false, not 3"),
        ("object", "list", "list must be an object"),
        ("array", "inner", "inner must be an array"),
        ("integers", "items", "items must be an array of whole numbers"),
        ("texts", "inner", "inner.name must be a string, not 1"),
        ("objects", "list", "list[0] must be an object, not 1"),
        ("named", "words", "words.k must be an object, not 'v'"),
    ],
)
def test_a_wrong_field_is_named(method: str, name: str, message: str) -> None:
    with pytest.raises(BundleError) as caught:
        getattr(fields(), method)(name)
    assert message in str(caught.value)


def test_a_number_too_small_is_named() -> None:
    with pytest.raises(BundleError, match="count must be at least 4, not 3"):
        fields().integer("count", 4)


@pytest.mark.parametrize("value", [-0.1, 1.5, 10**500])
def test_a_share_lies_between_0_and_1(value: float) -> None:
    assert Fields(DOCUMENT, {"x": 0.25}).share("x") == 0.25
    with pytest.raises(BundleError, match="x must be a number from 0 to 1, not "):
        Fields(DOCUMENT, {"x": value}).share("x")


def test_a_number_that_no_float_holds_is_named() -> None:
    with pytest.raises(BundleError, match="x must be a number that floats reach"):
        Fields(DOCUMENT, {"x": 10**500}).number("x")


def test_a_document_may_have_an_error_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"other\.json: the document must be an object"):
        Fields(Document("other.json", "mend it", ConfigError), [])
