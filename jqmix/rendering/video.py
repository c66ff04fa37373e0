"""Frames → GIF (by Pillow) or MP4 (by imageio's ffmpeg); and what a notebook shows."""

import base64
import contextlib
import importlib.util
import itertools
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jqmix.files import write_atomically
from jqmix.inputs import ConfigError, check_new_file, quoted, shown

if TYPE_CHECKING:
    from PIL import Image

    from jqmix.rendering.film import Film

MIME = {".gif": "image/gif", ".mp4": "video/mp4"}
HOLD = 2.0  # seconds that the last frame stays
COLOURS = 160  # of a GIF
SAMPLES = 6  # frames that these are taken from
FASTEST = 50  # frames per second: browsers slow down GIFs that are faster


def video_format(out: str | os.PathLike[str], overwrite: bool = False) -> str:
    """``.gif`` or ``.mp4``, by the ending of ``out``. Raises ``ConfigError``, one line, for another ending, where the
    file is there and may not be replaced, where it can't be made, and where a package is missing. Writes nothing."""
    ending = Path(out).suffix.lower()
    if ending not in MIME:
        raise ConfigError(f"out: {quoted(os.fspath(out))} is not allowed; it takes a file that ends with .gif or .mp4")
    check_new_file("out", out)
    if not overwrite and Path(out).exists():
        raise ConfigError(f"out: {shown(out)} already exists; --overwrite replaces it")
    if ending == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ConfigError('out: MP4 needs ffmpeg: pip install "jqmix[video]"; GIF does not')
    return ending


@dataclass(frozen=True)
class Video:
    """A film of episodes as a GIF or an MP4. A notebook shows it; ``save`` writes it.

    ``path`` is where it was written, if it was. ``frames`` counts its frames, at ``fps`` a second.
    """

    data: bytes = field(repr=False)
    format: str  # .gif or .mp4
    episodes: int
    frames: int
    fps: int | float
    path: Path | None = None

    def __repr__(self) -> str:
        return f"Video({'not written' if self.path is None else self.path}: {self.about})"

    @property
    def about(self) -> str:
        """How much it is: ``4 episodes, 69 frames, 0.32 MB``."""
        episodes = f"{self.episodes} episode{'s' if self.episodes > 1 else ''}"
        return f"{episodes}, {self.frames} frames, {len(self.data) / 1e6:.2g} MB"

    def save(self, out: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Writes the video to ``out``, whose ending must be its format's. Raises ``ConfigError``, one line, where it
        can't, and for a file that is there unless told to ``overwrite`` it."""
        if video_format(out, overwrite) != self.format:
            raise ConfigError(f"out: {quoted(os.fspath(out))} is not allowed; this video is a {self.format[1:]}")
        try:
            write_atomically(Path(out), lambda temporary: temporary.write_bytes(self.data))
        except OSError as error:
            raise ConfigError(f"out: {shown(out)} cannot be written: {error.strerror or error}") from None
        return Path(out)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """What Jupyter shows: the video itself."""
        del include, exclude
        code = base64.b64encode(self.data).decode()
        if self.format == ".gif":
            shown_as = f'<img src="data:image/gif;base64,{code}" alt="episodes">'
        else:
            shown_as = f'<video controls loop autoplay muted src="data:video/mp4;base64,{code}"></video>'
        return {"text/html": shown_as, "text/plain": repr(self)}


def encode(film: "Film", format: str, fps: int | float | None = None) -> Video:
    """Draws a film and encodes it; ``fps`` frames a second, or at its own pace."""
    rate = film.fps if fps is None else fps
    write = {".gif": _write_gif, ".mp4": _write_mp4}[format]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"film{format}"
        write(path, film, min(rate, FASTEST))
        return Video(path.read_bytes(), format, len(film.episodes), len(film), min(rate, FASTEST))


def _write_gif(path: Path, film: "Film", fps: int | float) -> None:
    """One palette for all frames, no dithering: between frames little differs, and only that is stored."""
    from PIL import Image

    palette = _palette(film)

    def reduced() -> Iterator["Image.Image"]:
        return (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in film.images())

    frames = reduced()
    each = 10 * max(2, round(100 / fps))  # milliseconds; the format counts hundredths of a second
    times = [each] * (len(film) - 1) + [round(1000 * HOLD)]
    next(frames).save(path, save_all=True, append_images=frames, duration=times, loop=0, optimize=True)


def _palette(film: "Film") -> "Image.Image":
    """The theme's colours as they are, and those of a few frames, in one picture."""
    from PIL import Image

    from jqmix.rendering.canvas import THEME

    last = len(film) - 1
    chosen = sorted({round(last * k / (SAMPLES - 1)) for k in range(SAMPLES)})
    images = [film.image(k) for k in chosen]
    width, height = images[0].size
    joined = Image.new("RGB", (width, height * len(images)))
    for k, image in enumerate(images):
        joined.paste(image, (0, k * height))
    found = joined.quantize(COLOURS, Image.Quantize.MAXCOVERAGE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*itertools.chain(*THEME), *found[: 3 * COLOURS]])
    return palette


def _write_mp4(path: Path, film: "Film", fps: int | float) -> None:
    """H.264 in 4:2:0, which every browser plays. Raises ``RuntimeError`` with what ffmpeg says where it fails."""
    from imageio_ffmpeg import get_ffmpeg_exe  # type: ignore[import-not-found]

    width, height = film.image(0).size
    source = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {fps:g} -i -"
    result = "-c:v libx264 -pix_fmt yuv420p -crf 20 -movflags +faststart -y"
    command = [get_ffmpeg_exe(), *f"-v error {source} {result}".split(), str(path)]
    held = itertools.repeat(film.image(len(film) - 1), round(HOLD * fps))
    with path.with_suffix(".log").open("w+b") as said:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said) as ffmpeg, contextlib.suppress(OSError):
            for image in itertools.chain(film.images(), held):
                ffmpeg.stdin.write(image.tobytes())  # type: ignore[union-attr]
        said.seek(0)
        if ffmpeg.returncode != 0:
            raise RuntimeError(f"ffmpeg: {said.read().decode(errors='replace')}")
