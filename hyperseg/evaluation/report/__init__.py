"""The report of an evaluation: one HTML page that needs no other file, no server and no network.

`page` puts the page together: `head`, `charts` of scores, `gallery` of pictures. `markup` escapes and formats.
`style.css` and `script.js` become parts of the page; without the script it can be read, but not sorted or enlarged.
"""

from hyperseg.evaluation.report.gallery import GalleryImage
from hyperseg.evaluation.report.page import read_report, write_report

__all__ = ["GalleryImage", "read_report", "write_report"]
