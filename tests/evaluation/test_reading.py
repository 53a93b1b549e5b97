"""Reading ahead in threads: order, errors, and how far ahead."""

import threading
import time

import pytest

from hyperseg.evaluation.reading import read_ahead


def test_order_is_kept_whatever_takes_longer():
    def load(key):
        time.sleep(0.01 * (key % 3 == 0))
        return key * 10

    assert list(read_ahead(range(12), load, workers=4)) == [(key, key * 10) for key in range(12)]
    assert list(read_ahead([], load)) == []


def test_errors_take_the_place_of_the_item():
    def load(key):
        if key == 1:
            raise ValueError("bad file")
        return key

    found = dict(read_ahead(range(3), load))
    assert (found[0], found[2]) == (0, 2)
    assert str(found[1]) == "bad file"


def test_no_more_than_asked_for_is_loaded_and_the_rest_is_not_after_the_reader_stops():
    loaded, lock = [], threading.Lock()

    def load(key):
        with lock:
            loaded.append(key)
        return key

    reader = read_ahead(range(1000), load, workers=2, ahead=3)
    assert next(reader) == (0, 0)
    reader.close()
    assert len(loaded) <= 1 + 3 + 1


@pytest.mark.parametrize("settings", [{"workers": 0}, {"ahead": 0}])
def test_settings(settings):
    with pytest.raises(ValueError, match="at least 1"):
        next(read_ahead([1], lambda key: key, **settings))
