"""Named errors. Each message is one sentence: the file, what was expected, what was got."""


class PVSError(Exception):
    """Base of all errors that a user can cause and correct; its text is shown without a traceback."""


class LayoutError(PVSError):
    """The input folder has no known layout, or a sequence of a case is missing or doubled."""


class VolumeError(PVSError):
    """An image file cannot be read, or its content cannot be segmented."""


class WeightsError(PVSError):
    """A weights file, the manifest or the text cache is missing, damaged or belongs to another network."""


class PromptError(PVSError):
    """A prompt is not cached, and no text encoder is available."""


class DeviceError(PVSError):
    """The requested device is not available, or has too little memory even for the smallest step."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, without traceback and advice."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def one_line(error: BaseException) -> str:
    """A library's error message with its line breaks replaced by spaces."""
    return " ".join(str(error).split())


def escape_control_characters(text: str) -> str:
    """Returns text with its unprintable and direction-changing characters spelt out, as file names are untrusted."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
