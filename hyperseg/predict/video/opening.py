"""Opening of a video: which formats and protocols are read, and messages for what cannot be read."""

import os
import re
import stat
from pathlib import PurePath
from typing import Any

from hyperseg._extras import require
from hyperseg._files import printable
from hyperseg._text import brief
from hyperseg.images.errors import SourceError, unreadable

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *(
            "mp4",
            "m4v",
            "mov",
            "qt",
            "mkv",
            "webm",
            "avi",
            "mpg",
            "mpeg",
            "mpe",
            "vob",
            "ts",
            "mts",
            "m2ts",
            "wmv",
            "asf",
        ),
        *("flv", "f4v", "3gp", "3g2", "ogv", "y4m", "mxf", "h264", "264", "hevc", "h265", "mjpg", "mjpeg", "ivf", "dv"),
    )
)

# Containers of video, by their names in FFmpeg. Lists of other files (hls, concat, dash, image sequences) are not among
# them: a file that somebody sent could name any file of this machine.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,live_flv,ogg,yuv4mpegpipe,mxf,h264,hevc,"
    "mjpeg,mpjpeg,ivf,dv,nut,vob,svcd,dvd,rawvideo,av1,obu,m4v,gxf,swf,rm,wtv"
)
_STREAMS = "http,https,tcp,tls,udp,rtp,rtsp,rtmp,rtmps,srt,crypto,httpproxy"
# The first bytes of common containers: MP4 and MOV (but not the photos that begin so too), Matroska, AVI, MPEG, Ogg,
# FLV, ASF, Y4M, IVF.
_HEADS = re.compile(
    rb"....ftyp(?!hei[cx]|hevc|mif1|msf1|avi[fs])|....(?:moov|mdat|wide)|\x1a\x45\xdf\xa3|RIFF....AVI |"
    rb"\x00\x00\x01[\xba\xb3]|OggS|FLV\x01|\x30\x26\xb2\x75\x8e\x66\xcf\x11|YUV4MPEG2 |DKIF",
    re.DOTALL,
)


def pyav() -> Any:
    """Import PyAV. Raises MissingPackageError."""
    return require("av", "video", "a video")


def has_video_suffix(name: str) -> bool:
    """Return whether a file with this name is a video."""
    return PurePath(name).suffix.lower() in SUFFIXES


def begins_like_a_video(head: bytes) -> bool:
    """Return whether a file with these first 16 bytes is a video of a common kind."""
    return bool(_HEADS.match(head))


def cause(error: Exception) -> str:
    """Return what an error of PyAV says, without its number and the file."""
    return getattr(error, "strerror", None) or brief(error)


def open_file(path: str) -> Any:
    """Open a video file; return PyAV's container. Raises SourceError, and MissingPackageError without PyAV."""
    av, name = pyav(), printable(path)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{name} is no regular file; give a video file")
        if status.st_size == 0:
            raise SourceError(f"{name} is empty (0 bytes); give a video file")
        # "file:" keeps a name such as http:x or -.mp4 from being read as another protocol.
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        return av.open(f"file:{path}", metadata_errors="replace", container_options=options)
    except SourceError:
        raise
    except av.FFmpegError as error:
        raise SourceError(f"{name} {_reason(error, path)}") from None
    except (OSError, ValueError) as error:
        raise unreadable(path, error, "a video file") from None


def open_stream(url: str, timeout: float) -> Any:
    """Open a stream of the network; return PyAV's container. Raises SourceError and MissingPackageError."""
    av, name = pyav(), printable(url)
    options = {"protocol_whitelist": _STREAMS}
    if url.lower().startswith("rtsp"):
        options["rtsp_transport"] = "tcp"  # UDP loses packets, and then pictures are torn
    try:
        return av.open(url, metadata_errors="replace", timeout=timeout, container_options=options)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise SourceError(
            f"{name} cannot be opened ({cause(error)}); is the address right, and the sender on?"
        ) from None


def _reason(error: Exception, path: str) -> str:
    if isinstance(error, FileNotFoundError | PermissionError):
        return f"could not be opened ({cause(error)})"
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError:
        head = b""
    if begins_like_a_video(head):
        return (
            f"begins like a video, but is damaged or incomplete ({cause(error)}); copy it again, or repair it, for "
            "example with `ffmpeg -i IN -c copy OUT.mp4`"
        )
    return f"is not a video of a known kind ({cause(error)}); give an MP4, MOV, MKV, WebM, AVI or the like"
