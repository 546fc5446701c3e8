"""A file that a person gives the studio: by upload, by path or from the microphone; in the end it is always a path.

So one line of text says what is used, a settings dict can name it, and a second run finds it again. Uploads are copied
into a scratch folder of this machine under a name made of their content; clearing deletes the copy.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rvc_spark.audio import open_audio
from rvc_spark.errors import AudioError, OutputError, RvcSparkError
from rvc_spark.widgets.controls import clear_uploads, uploads
from rvc_spark.widgets.studio_parts import Note, file_button, grown, line_of_text, row, small_button
from rvc_spark.widgets.studio_takes import file_stem

SOUND = "audio/*,video/*"
SPEAKER_SUFFIXES = (".safetensors", ".json")  # files of `enroll`, which are no sound


def store_upload(folder: Path, name: str, data: bytes) -> Path:
    """Copy bytes into the folder under their own name and a mark of their content. Raises AudioError, OutputError."""
    if not data:
        raise AudioError(f"{name!r:.60} is empty", "Choose another file.")
    given = Path(name.replace("\\", "/"))  # a browser tells a name, never a place; whatever comes, no folder is taken
    mark = hashlib.sha256(data).hexdigest()[:8]
    suffix = file_stem(given.suffix.lower())
    path = folder / f"{file_stem(given.stem)}_{mark}.{suffix}"
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data)
        os.replace(beside, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}", "Free some room, or give a path instead.") from error
    return path


def about_file(path: Path, *, speaker_files: bool = False) -> str:
    """A few words on a sound file. Raises AudioError when it is not there or is no sound.

    speaker_files: files of `enroll` are accepted too.
    """
    if not path.is_file():
        raise AudioError(f"there is no file {path}", "Give the path of a sound file, or upload one.")
    if speaker_files and path.suffix.lower() in SPEAKER_SUFFIXES:
        return f"{path.name}: a speaker enrolled before"
    with open_audio(path) as reader:
        frames = reader.frames or reader.expected_frames
        channels = {1: "mono", 2: "stereo"}.get(reader.channels, f"{reader.channels} channels")
        length = f"{frames / reader.rate:.1f} s, " if frames else ""
        return f"{path.name}: {length}{reader.rate} Hz, {channels}"


class FileChoice:
    """Upload button, path and clear button in one row, with a note below.

    Args:
        label: on the upload button. words: its tooltip. hint: what the empty path line says.
        folder: where uploads are copied to. speaker_files: accept files of `enroll`.
        changed: told when another file is chosen, or none.
    """

    def __init__(
        self,
        label: str,
        words: str,
        *,
        path: str | None,
        folder: Callable[[], Path],
        speaker_files: bool = False,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder, self._speaker_files, self._changed = folder, speaker_files, changed
        self._copies: set[str] = set()
        self.upload = file_button(label, SOUND + (",.safetensors,.json" if speaker_files else ""), words)
        self.path_box = grown(line_of_text(path or "", "or a path", f"{words}; a path on the machine of the kernel"))
        self.clear_button = small_button("times", "use none; an uploaded copy is deleted")
        self.note = Note()
        self.row = row(self.upload, self.path_box, self.clear_button, tight=True)
        self.upload.observe(self._on_upload, "value")
        self.path_box.observe(self._on_path, "value")
        self.clear_button.on_click(lambda _button: self.clear())
        self.look()

    @property
    def path(self) -> str | None:
        """The chosen file, None if there is none."""
        return self.path_box.value.strip() or None

    def take(self, name: str, data: bytes) -> None:
        """Use bytes that came from somewhere else, such as a microphone. A refusal is shown, and nothing changes."""
        try:
            path = store_upload(self._folder(), name, data)
            try:
                about_file(path, speaker_files=self._speaker_files)
            except RvcSparkError:
                path.unlink(missing_ok=True)
                raise
        except RvcSparkError as error:
            self.note.say(str(error), refused=True)
            return
        self._copies.add(str(path))
        self.path_box.value = str(path)

    def clear(self) -> None:
        """Use no file."""
        if (path := self.path) in self._copies:
            self._copies.discard(path)
            Path(path).unlink(missing_ok=True)
        self.path_box.value = ""
        self.note.say("")

    def _on_upload(self, _change: Any) -> None:
        try:
            given = uploads(self.upload)
        except AudioError as error:
            self.note.say(str(error), refused=True)
            given = []
        if given:
            self.take(given[-1].name, given[-1].data)
        if self.upload.value:
            clear_uploads(self.upload)  # the copy is what counts, and the same file can be chosen again

    def _on_path(self, _change: Any) -> None:
        self.look()
        self._changed()

    def look(self) -> None:
        """Say what the chosen file is, or why it cannot be used."""
        self.clear_button.layout.display = None if self.path else "none"
        if self.path is None:
            self.note.say("")
            return
        try:
            self.note.say(about_file(Path(self.path).expanduser(), speaker_files=self._speaker_files))
        except RvcSparkError as error:
            self.note.say(str(error), refused=True)
