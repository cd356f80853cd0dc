"""The subjects, each made once per run."""

from collections.abc import Iterator

import pytest

pytest.importorskip("transformers")

from tests.generation.subjects import NAMES, Subject, Subjects


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subjects]:
    with Subjects(tmp_path_factory.mktemp("subjects")) as made:
        yield made


@pytest.fixture(params=NAMES)
def subject(request: pytest.FixtureRequest, subjects: Subjects) -> Subject:
    return subjects[request.param]
