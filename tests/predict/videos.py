"""Small videos as phones make them: each frame shows its number as four bars."""

from fractions import Fraction

import av
import numpy as np

# The tables of ITU-T H.273.
BT709, BT601, BT2020, PQ = 1, 5, 9, 16
LIMITED, FULL = 1, 2
TICK = Fraction(1, 1000)


def bars(number, width=64, height=48):
    """Return a picture of a number from 0 to 15: a bar for each of its bits, white for 1."""
    picture = np.zeros((height, width, 3), np.uint8)
    for bit in range(4):
        picture[:, bit * width // 4 : (bit + 1) * width // 4] = 255 * (number >> bit & 1)
    return picture


def number_of(picture):
    """Return the number that a picture shows."""
    height, width = picture.shape[:2]
    return sum(int(picture[height // 2, bit * width // 4 + width // 8].mean() > 128) << bit for bit in range(4))


def flat(color):
    """Return a function that draws a picture of one colour."""
    return lambda number, width, height: np.full((height, width, 3), color, np.uint8)


def write_video(
    path,
    size=(48, 64),
    frames=12,
    times=None,
    time_base=None,
    rate=Fraction(25),
    codec="libx264",
    pixels="yuv420p",
    rotation=None,
    aspect=None,
    matrix=None,
    range_=None,
    transfer=None,
    sound=None,
    sound_from=0,
    draw=bars,
    options=None,
):
    """Write a video.

    `times` of its frames are in units of `time_base`; `sound` is a codec, and begins at `sound_from` seconds.
    """
    height, width = size
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=rate, options={"bf": "2", "crf": "4", **(options or {})})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        context = stream.codec_context
        base = time_base or 1 / rate
        stream.time_base = context.time_base = base
        for name, value in {"colorspace": matrix, "color_range": range_, "color_trc": transfer}.items():
            if value is not None:
                setattr(context, name, value)
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation)
        audio = None if sound is None else output.add_stream(sound, rate=44100)
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(index % 16, width, height), format="rgb24")
            if matrix is not None or range_ is not None:
                frame = frame.reformat(format=pixels, dst_colorspace=matrix, dst_color_range=range_)
            frame.pts, frame.time_base = index if times is None else times[index], base
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if audio is not None:
            write_sound(output, audio, sound_from)
    return path


def write_sound(output, stream, begin=0, samples=22050):
    """Add half a second of a sine to an output."""
    wave = np.sin(np.arange(samples, dtype=np.float32) / 30)[None]
    layout, kind = "mono", "fltp"
    if stream.codec_context.name.startswith("pcm"):
        wave, kind = (wave * 30000).astype(np.int16), "s16"
    frame = av.AudioFrame.from_ndarray(wave, format=kind, layout=layout)
    frame.rate, frame.pts = 44100, 44100 * begin
    output.mux(stream.encode(frame))
    output.mux(stream.encode())


def packets_of_sound(path):
    """Return the packets of a file's sound: their times in seconds and bytes."""
    with av.open(str(path)) as container:
        return [
            (float(packet.pts * packet.time_base), bytes(packet))
            for packet in container.demux(container.streams.audio[0])
            if packet.size
        ]
