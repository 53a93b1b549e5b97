"""The tag of a wheel: the glibc that its library needs, and no library that is not there."""

import shutil

import pytest

from hyperseg.ops.backends import native
from tools.wheels import WheelError, foreign, manylinux, platform_tag, required_versions

VERSIONS = """
  0x0020:   Name: GLIBC_2.14  Flags: none  Version: 7
  0x0030:   Name: GLIBC_{glibc}  Flags: none  Version: 8
  0x0040:   Name: GLIBCXX_3.4.9  Flags: none  Version: 6
  0x0050:   Name: GLIBCXX_{glibcxx}  Flags: none  Version: 5
  0x0060:   Name: CXXABI_1.3.11  Flags: none  Version: 4
"""


@pytest.mark.parametrize(
    ("glibc", "glibcxx", "tag"),
    [
        ("2.17", "3.4.19", "manylinux_2_28_x86_64"),
        ("2.28", "3.4.24", "manylinux_2_28_x86_64"),
        ("2.28", "3.4.25", "manylinux_2_31_x86_64"),
        ("2.34", "3.4.21", "manylinux_2_34_x86_64"),
        ("2.38", "3.4.21", "manylinux_2_39_x86_64"),
    ],
)
def test_the_tag_is_the_oldest_system_that_has_all_versions(glibc, glibcxx, tag):
    required = required_versions(VERSIONS.format(glibc=glibc, glibcxx=glibcxx))
    assert required["GLIBC"] == tuple(map(int, glibc.split(".")))
    assert required["CXXABI"] == (1, 3, 11)
    assert manylinux(required, "x86_64") == tag


def test_a_library_that_is_too_new_for_the_table():
    with pytest.raises(WheelError, match=r"needs CXXABI 1\.3\.11, GLIBC 9\.1, GLIBCXX 3\.4\.9.*update it"):
        manylinux(required_versions(VERSIONS.format(glibc="9.1", glibcxx="3.4.9")), "x86_64")


def test_libraries_of_torch_are_not_foreign():
    needed = (
        "libc10.so",
        "libtorch_cuda.so",
        "libcudart.so.13",
        "libm.so.6",
        "ld-linux-x86-64.so.2",
        "libtorch_python.so",
    )
    text = "\n".join(f" 0x0001 (NEEDED)  Shared library: [{name}]" for name in needed)
    assert foreign(text) == ["libtorch_python.so"], (
        "one library for every Python must not need the Python part of torch"
    )


@pytest.mark.skipif(shutil.which("readelf") is None, reason="binutils are not installed")
def test_the_extension_has_a_tag():
    module = native.extension()[0]
    if module is None or native.emulated():
        pytest.skip("the extension is not built")
    assert platform_tag(module.__file__).startswith("manylinux_2_")
