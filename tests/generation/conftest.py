"""The subjects, each made once per run."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

if find_spec("transformers") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from tests.generation.subjects import NAMES, Subject, Subjects

    @pytest.fixture(scope="session")
    def subjects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subjects]:
        with Subjects(tmp_path_factory.mktemp("subjects")) as made:
            yield made

    @pytest.fixture(params=NAMES)
    def subject(request: pytest.FixtureRequest, subjects: Subjects) -> Subject:
        return subjects[request.param]
