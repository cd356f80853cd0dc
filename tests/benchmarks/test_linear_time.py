from drl.benchmarks import linear_time
from tests.plugins.native.sets import needs_library


@needs_library
def test_every_engine_is_timed() -> None:
    times = list(linear_time.measure(128, 64, (1, 3), (1,), repeats=1, weights=0))
    assert {(t.engine, t.rows) for t in times} == {
        (engine, rows) for engine in linear_time.ENGINES for rows in (1, 3)
    }
    assert all(t.best > 0 for t in times)
