"""ImageSource: files in order, and what happens at one that cannot be read."""

from pathlib import Path

import pytest
from PIL import Image

from hyperseg.predict import ImageSource, SourceError, find_images


def test_source_reads_in_order_and_goes_on_after_broken_files(images, tmp_path):
    Image.fromarray(images["voc"]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    Image.fromarray(images["chelsea"]).save(tmp_path / "c.png")
    source = ImageSource(find_images([tmp_path]))
    assert len(source) == 3
    for _ in range(2):  # a source can be read again
        reader = iter(source)
        frames = [next(reader)]
        with pytest.raises(SourceError, match=r"b\.png is not an image"):
            next(reader)
        frames += reader
        assert [frame.name for frame in frames] == ["a", "c"]
        assert [frame.image.shape for frame in frames] == [images["voc"].shape, images["chelsea"].shape]
        assert frames[1].path == tmp_path / "c.png"
    with pytest.raises(SourceError, match=r"b\.png is not an image"):
        list(source)
    assert list(ImageSource([])) == []

    errors = []
    source = ImageSource(source.paths, on_error=errors.append)
    assert [frame.name for frame in source] == ["a", "c"]
    assert [type(error) for error in errors] == [SourceError]
    assert list(ImageSource([tmp_path / "b.png", tmp_path / "no.png"], errors.append)) == []
    assert "no.png" in str(errors[-1])


@pytest.mark.parametrize("function", [ImageSource, find_images])
@pytest.mark.parametrize("one", ["photos", Path("photos")])
def test_one_path_is_no_list_of_paths(function, one):
    with pytest.raises(TypeError, match="got one path, 'photos'; give a list of paths"):
        function(one)
