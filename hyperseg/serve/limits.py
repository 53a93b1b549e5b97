"""What a server accepts before it refuses: sizes, rates and times."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Bounds of a server. Raises ValueError for one that is not positive.

    body_bytes: of an image file.
    pixels: of an image; a decoded one takes three bytes for each.
    network_pixels: of the size that the network runs at, and `least_side` and `most_side` of its sides.
    queue: images that wait or are being done; a request beyond them gets status 503.
    uploads: requests whose body is being received, and of one client.
    rate: requests per second of one client, on average; twice as many at once.
    upload_seconds, result_seconds, send_seconds: for a body to come, for a result, for the client to take it.
    head_seconds: for the head of a request to come, and for a connection to do nothing.
    connections: open at a time.
    engines: kept in memory, one for each network and size; each has a copy of the weights.
    """

    body_bytes: int = 20 * 2**20
    pixels: int = 16_000_000
    network_pixels: int = 2048 * 2048
    least_side: int = 64
    most_side: int = 4096
    queue: int = 8
    uploads: int = 16
    uploads_of_client: int = 4
    rate: float = 60.0
    upload_seconds: float = 20.0
    result_seconds: float = 60.0
    send_seconds: float = 30.0
    head_seconds: float = 10.0
    connections: int = 128
    engines: int = 4

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}; give more than 0")
