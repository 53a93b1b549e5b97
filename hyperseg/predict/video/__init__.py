"""Videos as sources and sinks, by PyAV: every frame with its time, upright, in 8-bit RGB; H.264 with the sound kept.

`reading.py` has `VideoSource`, `writing.py` has `VideoSink`, `audio.py` copies the sound. PyAV is imported when a video
is opened: `pip install 'hyperseg[video]'`.
"""
